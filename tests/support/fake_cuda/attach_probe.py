"""The attach probe over the fake driver, run as `tandem doctor` runs the real one."""

import sys

from tandem.phase.attach_probe import main
from tests.support.fake_cuda.host import fake_driver, importers_over

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], importers_over(fake_driver())))
