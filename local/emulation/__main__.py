"""Start MiniStack with what it lacks: `python -m local.emulation`."""

from ministack.app import main

from local.emulation import redrive, states

if __name__ == "__main__":
    states.install()
    redrive.install()
    main()
