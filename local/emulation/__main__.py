"""Start MiniStack with what it lacks: `python -m local.emulation`."""

from ministack.app import main

from local.emulation import authorization, function_errors, function_logs, redrive, states
from local.emulation.decisions import noting

if __name__ == "__main__":
    states.install()
    redrive.install()
    function_logs.install()
    function_errors.install()
    authorization.install(noting())
    main()
