"""From `amiss keys` and `amiss publish` to a model that a device opens: what one side writes the other reads."""

from contextlib import closing
from pathlib import Path

import msgspec
import small_bundle
from tuf_repository import serving

from deploy import keys, publish
from deploy.keyfiles import KeyRing, Passphrases
from edge.bundle import AGENT_VERSION, SCHEMA, Bundle, write_bundle
from edge.config import DeviceConfig, StreamConfig, UpdateConfig
from edge.updating import updater
from edge.updating.offer import Facts
from edge.updating.store import Models


def test_what_is_published_arrives(tmp_path: Path) -> None:
    passphrases = Passphrases({"AMISS_KEY_PASSPHRASE_FILE": str(tmp_path / "passphrase")})
    (tmp_path / "passphrase").write_text("correct horse battery staple")
    (tmp_path / "passphrase").chmod(0o600)
    repository, first = tmp_path / "models", small_bundle.build(tmp_path / "first.amiss")
    keys.init(repository, tmp_path / "keys", passphrases)
    ring = KeyRing([tmp_path / "keys"], passphrases)
    publish.publish(first, repository, ring, note="the first")
    manifest, members = small_bundle.members(scorer="mahalanobis")
    second = tmp_path / "second.amiss"
    write_bundle(second, msgspec.structs.replace(manifest, version="2"), members)

    factory = Bundle.open(first)
    facts = Facts(
        node="pump-7",
        group="",
        channels=factory.manifest.channels,
        rate_hz=factory.manifest.rate_hz,
        schema=SCHEMA,
        agent=AGENT_VERSION,
        runtimes=("onnxruntime",),
    )
    (tmp_path / "root.json").write_bytes((repository / "metadata/1.root.json").read_bytes())

    def settings(where: str) -> DeviceConfig:
        return DeviceConfig(
            node="pump-7",
            bundle=str(first),
            streams={"pump": StreamConfig(port="/dev/null")},
            update=UpdateConfig(repository=where, root=str(tmp_path / "root.json")),
        )

    with closing(Models(tmp_path / "state/models", first)) as models:
        for number, bundle in ((1, first), (2, second)):
            if number == 2:
                keys.rotate(repository, ring, [], tmp_path / "more", passphrases)
                publish.publish(bundle, repository, ring)
            files = {str(path.relative_to(repository)): path.read_bytes() for path in repository.rglob("*") if path.is_file()}
            with serving(files) as server:
                found = updater.check(settings(server.url), facts, models)
                assert found.chosen is not None, found
                assert (found.state, found.chosen.number, found.skipped) == ("ok", number, ())
                path = updater.fetch(settings(server.url), found.chosen, models)
            assert path.read_bytes() == bundle.read_bytes()
            models.stage(found.chosen)
            models.switch()
            Bundle.open(models.serve().path).self_test()
            models.commit()
        assert models.floor == 2
        assert models.state.time_s > 1.7e9, "when it was signed is known"
        assert updater.check(settings(str(repository)), facts, models).chosen is None
