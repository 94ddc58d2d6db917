"""CSS and JavaScript of the page that report.py writes.

The eight arm colours are Okabe and Ito's, shifted until each has contrast 3:1 on its background.
"""

STYLE = """
:root { --bg: #f6f7f9; --card: #fff; --ink: #1b2430; --soft: #586474; --line: #d5dbe3;
  --kept: #c04a00; --good: #00694c; --bad: #9c2f6d; --a0: #5c6773; --a1: #b0558c; --a2: #0072b2;
  --a3: #d55e00; --a4: #008f68; --a5: #8a6d00; --a6: #5b4fc4; --a7: #2a8aa6 }
@media (prefers-color-scheme: dark) {
  :root { --bg: #12161c; --card: #1b2129; --ink: #e8ecf1; --soft: #a3afbd; --line: #37414e;
    --kept: #ff9a52; --good: #4fd0a5; --bad: #f08cc0; --a0: #a9b4c0; --a1: #e08fc0; --a2: #56b4e9;
    --a3: #ff9046; --a4: #3fc79b; --a5: #e0c04a; --a6: #a99cff; --a7: #7fd3e6 }
}
.a0 { --c: var(--a0) } .a1 { --c: var(--a1) } .a2 { --c: var(--a2) } .a3 { --c: var(--a3) }
.a4 { --c: var(--a4) } .a5 { --c: var(--a5) } .a6 { --c: var(--a6) } .a7 { --c: var(--a7) }

* { box-sizing: border-box }
body { margin: 0; background: var(--bg); color: var(--ink); -webkit-text-size-adjust: 100%;
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Liberation Sans", sans-serif }
main { max-width: 1160px; margin: 0 auto; padding: 36px 24px 48px }
h1 { font-size: 2.1rem; line-height: 1.15; margin: 0 0 .6rem; overflow-wrap: anywhere }
h2 { font-size: 1.3rem; margin: 2.6rem 0 .7rem }
p { margin: .3rem 0 }
small, .hint { color: var(--soft) }
.hint { font-size: .9rem }
.over { color: var(--soft); font-size: .85rem; letter-spacing: .08em; text-transform: uppercase }
.lead { font-size: 1.12rem; max-width: 66ch; overflow-wrap: anywhere }
.facts { display: flex; flex-wrap: wrap; gap: .5rem; margin: 1.1rem 0 0 }
.facts div { background: var(--card); border: 1px solid var(--line); border-radius: 10px;
  padding: .4rem .8rem }
dt { font-size: .75rem; color: var(--soft) }
dd { margin: 0; font-weight: 600; overflow-wrap: anywhere }
[hidden] { display: none !important }

.verdict { border-left: 5px solid var(--soft); background: var(--card); padding: .7rem 1rem;
  margin: 0 0 1rem; border-radius: 0 10px 10px 0; overflow-wrap: anywhere }
.verdict.clear { border-color: var(--good) }
.scroll { overflow-x: auto; background: var(--card); border: 1px solid var(--line);
  border-radius: 12px }
table { border-collapse: separate; border-spacing: 0; width: 100%; font-size: .92rem;
  font-variant-numeric: tabular-nums }
th, td { padding: .55rem .7rem; text-align: right; white-space: nowrap; vertical-align: top }
thead th { font-size: .78rem; color: var(--soft); white-space: normal; vertical-align: bottom }
tbody th, tbody td { border-top: 1px solid var(--line) }
th:first-child { text-align: left; position: sticky; left: 0; background: var(--card) }
th small { display: block; font-weight: 400; padding-left: 1.5rem; max-width: 15rem;
  white-space: normal }
tr.top td:nth-child(2) { color: var(--kept) }
.badge { display: block; font-size: .72rem; font-style: normal; font-weight: 600; line-height: 1.2 }
.ci { color: var(--soft) }
.note { position: absolute; color: var(--soft) }
.key { width: 1.05rem; height: 1.05rem; vertical-align: -.16rem; margin-right: .15rem }

.figures { display: grid; gap: 18px; align-items: start;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 400px), 1fr)) }
figure { margin: 0; background: var(--card); border: 1px solid var(--line); border-radius: 12px;
  padding: 14px 16px }
figure > svg { display: block; width: 100%; max-width: 560px; margin: auto }
figcaption span { display: block; color: var(--soft); font-size: .85rem; margin-bottom: .7rem }
text { fill: var(--ink); font-size: 12.5px; paint-order: stroke; stroke: var(--card);
  stroke-width: 4px; stroke-linejoin: round }
.name { font-weight: 600 }
.tick { fill: var(--soft); font-size: 11px }
.value { font-variant-numeric: tabular-nums }
.grid { stroke: var(--line) }
.zero { stroke: var(--ink); stroke-width: 1.5 }
.base { stroke: var(--soft); fill: none }
.mark { fill: var(--c); stroke: var(--card); stroke-width: 1 }
.mark.hollow { fill: var(--card); stroke: var(--c); stroke-width: 2.2 }
.whisker { stroke: var(--c); stroke-width: 2.6; fill: none }
.hill { fill: var(--c); fill-opacity: .38; stroke: var(--c) }
.median { stroke: var(--ink); stroke-width: 1.6 }

.tools, .legend { display: flex; flex-wrap: wrap; gap: .4rem; margin: .8rem 0 }
button { font: inherit; font-size: .88rem; color: var(--ink); background: var(--card);
  border: 1px solid var(--line); border-radius: 99px; padding: .3rem .9rem; cursor: pointer }
button[aria-pressed=true] { border-color: var(--kept); box-shadow: inset 0 0 0 1px var(--kept) }
.legend { font-size: .86rem; gap: .4rem 1.3rem }
.wide { flex-basis: 100% }
.line { display: inline-block; width: 2rem; border-top: 1.5px solid var(--soft);
  vertical-align: .25rem }
.line.kept { border-top: 4px solid var(--kept) }
.line.dashed { border-top: 2px dashed var(--soft) }
.chip { display: inline-block; font-weight: 650; font-size: .84rem; white-space: nowrap;
  font-variant-numeric: tabular-nums; padding: .02rem .5rem; border-radius: 6px;
  border: 1px solid #0003 }
.q0 { background: #08467f; color: #fff }
.q1 { background: #2f77b5; color: #fff }
.q2 { background: #7db6db; color: #10202e }
.q3 { background: #c3dcee; color: #10202e }
.q4 { background: #f2f6fa; color: #10202e }
.chip.invalid { color: var(--ink); border: 1px solid var(--soft);
  background: repeating-linear-gradient(135deg, transparent 0 4px, var(--line) 4px 6px) }

.tree { background: var(--card); border: 1px solid var(--line); border-radius: 14px;
  margin: 16px 0 }
.tree > summary { padding: .8rem 1.1rem; cursor: pointer }
.tree > summary small { margin-left: .6rem }
.outcome { font-weight: 650; font-size: .88rem; border: 1.5px solid; border-radius: 99px;
  padding: .1rem .7rem; margin: 0 .3rem; white-space: nowrap; color: var(--soft) }
.outcome.right { color: var(--good) }
.outcome.wrong { color: var(--bad) }
.outcome.pruned { border-style: dashed }
.head { display: flex; flex-wrap: wrap; gap: .6rem 2rem; justify-content: space-between;
  padding: 0 1.2rem .4rem }
.head > div { flex: 1 1 340px }
.problem { font-size: 1.12rem; max-width: 60ch; white-space: pre-wrap; overflow-wrap: anywhere }
.gold { overflow-wrap: anywhere }
.path { flex: 0 1 300px; min-width: 0; max-width: 300px }
.ring { fill: none; stroke: var(--soft); stroke-width: 1.3 }
.dot { fill: var(--kept) }
.curve { fill: none; stroke: var(--c); stroke-width: 2 }
polyline.kept { fill: none; stroke: var(--kept); stroke-width: 3 }

.rounds { overflow-x: auto; margin: 0 1.2rem; padding-bottom: 1.2rem; container-type: inline-size }
.rounds.tall { max-width: 46rem }
.round { display: grid; grid-template-columns: 5rem 1fr;
  min-width: calc(5rem + var(--k, 1) * 9.6rem) }
.gutter { grid-row: 2; font-weight: 600; font-size: .86rem; padding-top: .55rem }
.gutter small { display: block; font-weight: 400 }
.links { grid-column: 2; width: 100%; height: 44px; display: block }
.links path { fill: none; stroke: var(--soft); stroke-opacity: .6; stroke-width: 1.2;
  vector-effect: non-scaling-stroke }
.links path.kept { stroke: var(--kept); stroke-opacity: 1; stroke-width: 4 }
.links path.dashed { stroke-dasharray: 5 5; stroke-width: 1.8 }
.row { grid-column: 2; display: grid; grid-template-columns: repeat(var(--k, 1), minmax(0, 1fr)) }
.cell { padding: 0 6px; display: flex }
.card { flex: 1; min-width: 0; border: 1.2px solid var(--line); border-radius: 10px;
  padding: .5rem .65rem; font-size: .93rem; line-height: 1.42; color: var(--soft) }
.card p { white-space: pre-wrap; overflow-wrap: anywhere }
.card .none { font-style: italic }
.facet { display: flex; flex-wrap: wrap; gap: .1rem .5rem; align-items: center }
.facet small { font-size: .78rem }
.cell.kept .card { border: 3px solid var(--kept); color: var(--ink) }
.cell.kept .facet small { color: var(--kept); font-weight: 650 }
.cell.pruned .card { border: 1.8px dashed var(--soft) }
.cell.invalid p { text-decoration: line-through; text-decoration-thickness: 1px }
.finish { margin: 0 auto; text-align: center; border: 3px solid var(--kept); border-radius: 12px;
  padding: .5rem 1.2rem; overflow-wrap: anywhere }
.finish small { display: block }
.finish.pruned { border: 2px dashed var(--soft); margin-top: 12px }
.more summary { cursor: pointer; padding: .8rem 0 }

footer { margin-top: 3rem; border-top: 1px solid var(--line); padding-top: 1rem; font-size: .88rem;
  color: var(--soft); overflow-wrap: anywhere }
code, pre { font-size: .85em; color: var(--ink) }
pre { white-space: pre-wrap }

@media (max-width: 700px) {
  main { padding: 22px 14px 36px }
  h1 { font-size: 1.65rem }
  figure text { font-size: 16px }
  figure .tick { font-size: 14.5px }
  .head { padding: 0 .8rem .4rem }
  .rounds { margin: 0 .8rem }
  th:first-child { white-space: normal; overflow-wrap: anywhere; min-width: 9.6rem;
    max-width: 9.6rem }
}
@container (max-width: 46rem) {
  .links { display: none }
  .round, .row { display: block; min-width: 0 }
  .gutter { padding: .7rem 0 .3rem 20px; margin-left: 6px; border-left: 4px solid var(--kept) }
  .gutter small { display: inline; margin-left: .6rem }
  .cell { position: relative; display: block; margin-left: 6px; padding: 0 0 8px 20px;
    border-left: 4px solid var(--kept) }
  .cell::before { content: ""; position: absolute; left: 0; top: 1.15rem; width: 20px;
    border-top: 1.5px solid var(--soft) }
  .cell.kept::before { border-top: 4px solid var(--kept) }
  .lost .cell { border-left: 2px dashed var(--soft) }
  .lost .cell::before { border-top-style: dashed }
  .finish { margin-top: 6px; text-align: left }
}
@media print {
  .tools { display: none }
  .round { break-inside: avoid }
}
"""

SCRIPT = """
const tools = document.querySelector('.tools');
const trees = [...document.querySelectorAll('.tree')];
if (tools) {
  tools.hidden = false;
  tools.addEventListener('click', event => {
    const button = event.target.closest('button');
    if (!button) return;
    const {fold, only} = button.dataset;
    if (fold) trees.forEach(tree => { tree.open = fold === 'open'; });
    if (!only) return;
    trees.forEach(tree => { tree.hidden = only !== 'all' && tree.dataset.outcome !== only; });
    tools.querySelectorAll('[data-only]').forEach(
      other => other.setAttribute('aria-pressed', other === button));
  });
}
"""
