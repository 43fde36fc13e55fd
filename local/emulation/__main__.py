"""Start MiniStack with what it lacks: `python -m local.emulation`."""

from ministack.app import main

if __name__ == "__main__":
    main()
