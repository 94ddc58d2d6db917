"""How long the parts of a run took: times.csv."""

import time

import pytest

from gen_ssd import times


def test_a_line_for_every_time_the_work_was_begun(tmp_path):
  folder = tmp_path / "work"
  first = times.Times(folder)
  time.sleep(0.3)
  first.write(100)
  first.write(250)  # the same line
  one = times.read(folder)
  assert one.tokens == 250 and 0.3 <= one.seconds < 30
  second = times.Times(folder)  # begun again after it was stopped
  time.sleep(0.2)
  second.write(50)
  both = times.read(folder)
  assert both.tokens == 300 and both.seconds >= one.seconds + 0.2 - 0.06  # rounded to 0.1 s
  assert len((folder / "times.csv").read_text().splitlines()) == 3


@pytest.mark.parametrize(
  "damage",
  [
    b"2026-01-01T00:00:00+00:00,1.0\n",
    b"2026-01-01T00:00:00+00:00,nan,7\n",
    b"2026-01-01T00:00:00+00:00,-1,7\n",
    b"2026-01-01T00:00:00+00:00,1e999,7\n",
    b"yesterday,1.0,7\n",
    b'"\n',
    b"\xff\xfe",
    b"\0,\0,\0\n",
  ],
)
def test_damaged_lines_are_skipped(tmp_path, damage):
  clock = times.Times(tmp_path)
  clock.write(5)
  whole = (tmp_path / "times.csv").read_bytes()
  (tmp_path / "times.csv").write_bytes(whole + damage)
  assert times.read(tmp_path).tokens in (5, 0)  # 0: the file is not a text
  times.Times(tmp_path).write(2)  # and work goes on
  assert times.read(tmp_path).tokens in (7, 2)


def test_no_file_is_no_time(tmp_path):
  assert times.read(tmp_path) == times.Took(0, 0)
  (tmp_path / "times.csv").mkdir()
  assert times.read(tmp_path) == times.Took(0, 0)
