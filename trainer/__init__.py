"""Learning what normal looks like, from recordings without labels. Needs PyTorch; never runs on the device.

    recordings ──data──▶ windows ──train──▶ RUN directory ──checkpoint──▶ Detector ──quantize──▶ bundle

- `recipes`: recipe.toml → frozen structs; every default lives there;
- `data`: recordings → windows, through the device's own code, and the split into those to learn from and those held back;
- `quality`: what is wrong with recordings; `rhythm`: how long a window should be;
- `rows`, `windows`: where samples lie while they are used;
- `encoders`, `pretexts`: one file per idea; `model` puts normalisation, encoder and residual into the exported graph;
- `train`: the loop (read this first);
- `evaluate`, `metrics`, `baselines`: labelled recordings through `edge.pipeline`, and figures, beside simple methods;
- `report`: all that can be measured, on one page (`page`, `svg`): `promise`, `stress`, `adversarial`;
- `datasets`, `download`, `conversions`: public data sets, fetched by commit, proven, and turned into recordings.
"""
