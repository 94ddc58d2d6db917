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
