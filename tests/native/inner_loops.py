"""Counts the instructions of the NEON kernels' inner loops: per tap, the multiplications and all, and spilled vectors.

    python tests/native/inner_loops.py aarch64-linux-gnu-g++ [OBJDUMP]

Compiles every float32 register tile of ``csrc/cpu/kernels/sparse_conv.h`` that the row "neon" of ``isas.h`` beside it
allows, with the flags of CMakeLists.txt, and reads the disassembly. The exit status is 1 if a loop over taps keeps a
vector on the stack. Counts are not times: nothing here was measured on an ARM processor.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
LANES, SUMS, ROWS, COLUMNS = 4, 24, 8, 8  # from the row in isas.h, and kMaxCols
FLAGS = "-std=c++20 -O3 -fPIC -Wno-psabi -fno-math-errno -ffp-contract=fast -DSPARSEGAN_ISA=neon".split()
PARAMETERS = (
    "const sparsegan::RecordRange&, const float*, int64_t, float*, int64_t, int64_t, const float*, "
    "const sparsegan::SumScale*"
)

Instruction = tuple[int, str, str]  # address, mnemonic, operands


def innermost(code: list[Instruction]) -> list[list[Instruction]]:
    """The bodies of the loops, which backward branches end."""
    bodies = []
    for address, name, operands in code:
        target = re.search(r"\b([0-9a-f]+) <", operands)
        if target and re.fullmatch(r"b(\..*)?|cbn?z|tbn?z", name) and int(target[1], 16) <= address:
            bodies.append([one for one in code if int(target[1], 16) <= one[0] <= address])
    return bodies


def main() -> None:
    compiler = sys.argv[1:2] or ["aarch64-linux-gnu-g++"]
    objdump = sys.argv[2] if len(sys.argv) > 2 else "aarch64-linux-gnu-objdump"
    scheduling = [] if "clang" in compiler[0] else ["-fno-schedule-insns"]
    tiles = [
        (width, rows, columns)
        for width in (1, 2, 4)
        for rows in range(1, ROWS + 1)
        for columns in range(1, COLUMNS + 1)
        if 8 <= width * rows * columns <= SUMS and rows * columns <= (SUMS if width == 1 else 31 - width) // width
    ]
    spilled = 0
    with tempfile.TemporaryDirectory() as folder:
        source, object_file = Path(folder, "tiles.cpp"), Path(folder, "tiles.o")
        for tile in tiles:
            numbers = ", ".join(map(str, (LANES, *tile)))
            source.write_text(
                f'#include "{ROOT}/csrc/cpu/kernels/sparse_conv.h"\n'
                f"template void sparsegan::neon::sparse_conv_tile<sparsegan::neon::Single<float>, {numbers}>"
                f"({PARAMETERS});\n"
            )
            subprocess.run([*compiler, *FLAGS, *scheduling, "-c", source, "-o", object_file], check=True)
            text = subprocess.run(
                [objdump, "-d", "--no-show-raw-insn", object_file], check=True, capture_output=True, text=True
            ).stdout
            code = [
                (int(a, 16), name, rest)
                for a, name, rest in re.findall(r"^ +([0-9a-f]+):\s+(\S+) *\t?(.*)$", text, re.M)
            ]
            sums = tile[0] * tile[1] * tile[2]
            loops = [body for body in innermost(code) if sum(one[1] == "fmla" for one in body) == sums]
            assert loops, f"no loop of {sums} multiplications in {tile}"
            body = min(loops, key=len)
            spills = sum("sp" in rest and re.search(r"\b[qvd]\d", rest) is not None for _, _, rest in body)
            spilled += spills
            print(
                f"{tile[0]} channels x {tile[1]} rows x {tile[2]} vectors: {sums:2} fmla of {len(body):2} instructions "
                f"per tap, {spills} vectors on the stack"
            )
    if spilled:
        sys.exit(f"{spilled} vectors are kept on the stack in loops over taps")


if __name__ == "__main__":
    main()
