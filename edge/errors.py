"""The error tree. A class says what the caller does next; `exit_code` is what `amiss` exits with (sysexits.h).

    AmissError                  70
    ├── UsageError               2   type the command differently
    ├── GateError                1   a gate did not pass: look at the report
    ├── DataError               65   mend the file, or take the amiss that wrote it
    ├── NoInputError            66   name a file that exists
    ├── BundleError             65   keep the model that works
    ├── UnfitError              65   leave the offer alone: it is for another machine or agent
    ├── UntrustedError          65   keep the model that works; find out who serves such a repository
    ├── RepositoryAwayError     69   keep the model that works, ask again later
    ├── ConfigError             78   edit the configuration
    ├── SourceLostError         69   wait, then open the sensor again
    ├── SinkUnavailableError    69   keep the record, try later
    ├── SinkRejectedError       77   park the record; the others go on
    ├── AccessError             77   fix rights or credentials
    ├── CannotCreateError       73   choose another place to write to
    ├── StorageError            74   free space, replace the disk
    ├── BusyError               75   wait until somebody else is done
    └── UndeliveredError        75   nothing is lost: start again when the broker is back

Damaged bytes, lost samples and an absent broker are ordinary life: they are counted, not raised. Everything that is not
in this tree is a bug and ends the process; the service manager starts it again.
"""


class AmissError(Exception):
    """Base of every error that a user can act on. The message names cause and cure in one line."""

    exit_code = 70


class UsageError(AmissError):
    exit_code = 2


class GateError(AmissError):
    exit_code = 1


class DataError(AmissError):
    exit_code = 65


class NoInputError(AmissError):
    exit_code = 66


class BundleError(AmissError):
    exit_code = 65


class UnfitError(AmissError):
    exit_code = 65


class UntrustedError(AmissError):
    exit_code = 65


class RepositoryAwayError(AmissError):
    exit_code = 69


class ConfigError(AmissError):
    exit_code = 78


class SourceLostError(AmissError):
    exit_code = 69


class SinkUnavailableError(AmissError):
    exit_code = 69


class SinkRejectedError(AmissError):
    exit_code = 77


class AccessError(AmissError):
    exit_code = 77


class CannotCreateError(AmissError):
    exit_code = 73


class StorageError(AmissError):
    exit_code = 74


class BusyError(AmissError):
    exit_code = 75


class UndeliveredError(AmissError):
    exit_code = 75
