"""A reader that never comes to an end, to be ended."""

import sys
import time

from inspector.intake.confinement import serve


def work(task):
    while True:
        time.sleep(1)


if __name__ == "__main__":
    sys.exit(serve(work, ValueError))
