"""A plan for people: as text, and as a row of the table in launch/README.md."""

import typing

LISTED = 6  # collectives of a program that are printed


def _row(name, p):
  """The line of one program."""
  number = lambda key, unit="": "-" if p.get(key) is None else f"{p[key]:,.1f}{unit}"
  said = {True: "fits", False: "DOES NOT FIT", None: ""}[p["fits"]]
  use = f"{number('peak_gib')} of {p['hbm_gib']:,.1f} {said}"
  times = f"{number('ms_estimate', ' ms'):>13}{number('ms_roofline', ' ms'):>12}"
  sizes = f"{number('arguments_gib'):>10}{number('temporaries_gib'):>13}"
  return f"{name:<9}{sizes}  {use:<27}{number('compile_s', ' s'):>8}{times}"


def text(found: dict[str, typing.Any]) -> str:
  """A plan for people."""
  rows = [
    f"{found['config']}, arm {found['arm']}, on {found['topology']}: {found['chips']} chips of "
    f"{found['hosts'] or '-'} hosts, mesh {found['mesh']}",
    "",
    "program   arguments  temporaries  peak of memory, GiB         compile     estimate    roofline",
  ]
  rows += [_row(name, p) for name, p in found["programs"].items()]
  for name, p in found["programs"].items():
    if p["ms_kernel"]:
      rows.append(
        f"  {name}: {p['ms_kernel']:,.1f} ms of the estimate are attention at its roofline"
      )
    for c in (p["collectives"] or ())[:LISTED]:
      where = ", across hosts" if c["crosses_hosts"] else ""
      rows.append(f"  {name}: {c['times']:,} x {c['kind']} of {c['bytes'] / 2**20:,.2f} MiB{where}")
  if "kept_tok_s" in found:
    rows += [
      "",
      f"{found['kept_tok_s']:,.0f} kept tokens/s at best; the student takes "
      f"{found['student_share']:.0%} of a round",
      f"fences take {found['fence_share']:.1%} of a collection, and one that is killed loses at most "
      f"{found['lost_minutes']:,.1f} minutes (select.shard_rounds)",
      f"{found['hours']:,.1f} hours, {found['chip_hours']:,.1f} chip-hours"
      + (f", price {found['price']:,.2f}" if "price" in found else "")
      + f" for {found['problems']:,} problems in every arm, traces of {found['tokens']:,} tokens and "
      "all training; without evaluation, start-up and communication",
    ]
  return "\n".join([*rows, *(f"- {line}" for line in found["advice"])])


def row(found: dict[str, typing.Any]) -> str:
  """A plan of a slice as a row: memory, seconds as estimated (roofline), tokens/s, chip-hours."""
  p, mesh = found["programs"], found["mesh"]
  show = lambda x, places=1: "-" if x is None else f"{x:,.{places}f}"
  size = lambda name: show(p[name]["peak_gib"]) + (" **no**" if p[name]["fits"] is False else "")
  seconds = lambda name: " ".join(
    (
      show(p[name]["ms_estimate"] and p[name]["ms_estimate"] / 1e3),
      f"({show(p[name]['ms_roofline'] / 1e3)})",
    )
  )
  works = all(x["fits"] for x in p.values())
  cells = [
    f"`{found['config'].replace('-', '_')}`",
    found["topology"],
    f"{found['chips']}, {found['hosts'] or '-'}",
    f"{mesh['data']} x {mesh['model']}",
    f"{p['step']['hbm_gib']:.0f}",
    *map(size, ("step", "admit", "train")),
    seconds("step"),
    seconds("train"),
    show(found["kept_tok_s"] if works else None, 0),
    show(found["chip_hours"] if works else None, 0),
  ]
  return f"| {' | '.join(cells)} |"
