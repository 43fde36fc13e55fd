"""Start MiniStack with what it lacks: `python -m local.emulation`."""

from ministack.app import main

from local.emulation import function_errors, redrive, states

if __name__ == "__main__":
    states.install()
    redrive.install()
    function_errors.install()
    main()
