"""Start MiniStack with what it lacks: `python -m local.emulation`."""

from ministack.app import main

from local.emulation import authorization
from local.emulation.decisions import noting

if __name__ == "__main__":
    authorization.install(noting())
    main()
