# SPDX-License-Identifier: Apache-2.0
"""An hour of the exporter, at an output each 15 s, on a host where all comes and goes.

Every page is read by Prometheus' own parser and tool, and the process keeps its size.
"""

import pathlib
import subprocess
import sys

from prometheus_client.parser import text_string_to_metric_families

CHURNING = pathlib.Path(__file__).parent / "churning.py"
OUTPUTS, SESSIONS = 240, 500
# A page of 501 series; a label has at most 400 characters, of two bytes each if they are escaped.
LARGEST = 501 * 3 * 1000
MEMORY = 30_000  # kB


def test_an_hour_of_names_that_are_hostile(tmp_path):
    file = tmp_path / "tcptop.prom"
    command = [sys.executable, str(CHURNING), str(file), str(SESSIONS)]
    sizes, memory, before = [], [], {}
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        for _ in range(OUTPUTS):
            process.stdin.write("\n")
            process.stdin.flush()
            *figures, complaint = process.stdout.readline().rstrip("\n").split(" ", 3)
            received, sent, pss = map(int, figures)
            assert complaint == ""
            page = file.read_bytes()
            sizes.append(len(page))
            memory.append(pss)
            checked = subprocess.run(
                ["promtool", "check", "metrics"], input=page, capture_output=True, check=False
            )
            assert (checked.returncode, checked.stdout, checked.stderr) == (0, b"", b"")
            sums, now = {}, {}
            for family in text_string_to_metric_families(page.decode()):
                for one in family.samples:
                    sums[one.name] = sums.get(one.name, 0) + int(one.value)
                    now[(one.name, *one.labels.values())] = one.value
            assert sums["tcptop_received_bytes_total"] == received
            assert sums["tcptop_sent_bytes_total"] == sent
            fell = [key for key, value in before.items() if now[key] < value and "_total" in key[0]]
            assert fell == []
            before = now
        process.stdin.close()
    print(f"\npages of {max(sizes)} bytes at most; PSS {memory[0]} kB after the first output,")
    print(f"{memory[len(memory) // 2]} kB after half of them, {max(memory)} kB at most")
    assert max(sizes) < LARGEST
    assert max(memory) < MEMORY
    assert max(memory) < 1.2 * max(memory[: OUTPUTS // 4]), "it grows"
