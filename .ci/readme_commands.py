"""Print one of the two commands on the README's first screen, exactly as it stands there.

    readme_commands.py 1|2

What a reader is told to type and what is checked cannot drift apart: the checks take it from here alone.
"""

import re
import sys
from pathlib import Path

README = Path(__file__).resolve().parent.parent / "README.md"


def commands() -> list[str]:
    """The first screen's ```bash blocks: those in front of the first second-level heading."""
    first_screen = re.split(r"^## ", README.read_text(encoding="utf-8"), maxsplit=1, flags=re.MULTILINE)[0]
    found = re.findall(r"^```bash\n(.*?)^```$", first_screen, flags=re.MULTILINE | re.DOTALL)
    if len(found) != 2:
        sys.exit(f"{README.name}: the first screen should hold two ```bash blocks, it holds {len(found)}")
    return found


if __name__ == "__main__":
    sys.stdout.write(commands()[int(sys.argv[1]) - 1])
