const tools = document.querySelector('.tools:not(.filters)');
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

const filters = document.querySelector('.filters');
if (filters) {
  const cases = [...document.querySelectorAll('.case')];
  filters.hidden = false;
  filters.addEventListener('change', () => {
    const want = {};
    filters.querySelectorAll('select').forEach(s => { want[s.dataset.what] = s.value; });
    const fits = (side, ...fields) =>
      fields.every(field => !want[field] || side.dataset[field] === want[field]);
    const versus = want.first && want.second;
    let shown = 0;
    cases.forEach(one => {
      const sides = [...one.querySelectorAll('.side')];
      const pair = [want.first, want.second].map(arm => sides.find(s => s.dataset.arm === arm));
      const differ = pair[0] && pair[1] && pair[0].dataset.verdict !== pair[1].dataset.verdict
        && pair.some(side => fits(side, 'verdict', 'stop'));
      sides.forEach(side => {
        side.hidden = versus
          ? !(differ && pair.includes(side)) : !fits(side, 'verdict', 'arm', 'stop');
      });
      one.hidden = sides.every(side => side.hidden);
      shown += !one.hidden;
    });
    filters.querySelector('output').textContent = `${shown} ${shown === 1 ? 'problem' : 'problems'}`;
  });
}
