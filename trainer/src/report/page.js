'use strict';
// Values under the pointer, and a token's figures where it was tapped. The page is complete without.
for (const chart of document.querySelectorAll('svg.chart')) {
  const figure = chart.parentElement;
  const number = (name) => Number(chart.dataset[name]);
  const [left, right, first, last] = ['left', 'right', 'first', 'last'].map(number);
  const curves = [...chart.querySelectorAll('.curve')].map((curve) => ({
    color: curve.classList[1],
    label: curve.dataset.label,
    steps: curve.dataset.x.split(' ').map(Number),
    values: curve.dataset.y.split(' '),
  }));
  const pointer = document.createElementNS(chart.namespaceURI, 'path');
  pointer.setAttribute('class', 'pointer');
  const values = document.createElement('div');
  values.className = 'values';
  values.hidden = true;
  figure.append(values);
  const nearest = (steps, at) => steps.reduce((best, step, i) => (Math.abs(step - at) < Math.abs(steps[best] - at) ? i : best), 0);
  const line = (text, value, color) => {
    const row = document.createElement('div');
    const name = document.createElement('span');
    if (color) {
      const swatch = document.createElement('span');
      swatch.className = 'swatch ' + color;
      name.append(swatch);
    }
    name.append(text);
    row.append(name, value);
    values.append(row);
  };
  chart.addEventListener('pointermove', (event) => {
    const box = chart.getBoundingClientRect();
    const at = ((event.clientX - box.left) / box.width) * chart.viewBox.baseVal.width;
    const wanted = first + ((at - left) / (right - left)) * (last - first);
    const steps = curves.map((curve) => curve.steps[nearest(curve.steps, wanted)]);
    const step = steps[nearest(steps, wanted)];
    values.replaceChildren();
    line('step ' + step, '');
    curves.forEach((curve, i) => {
      // Long curves are thinned out, each in its own way: a neighbouring step will do.
      if (Math.abs(steps[i] - step) <= (last - first) / 150) line(curve.label, curve.values[nearest(curve.steps, step)], curve.color);
    });
    const x = left + ((step - first) / (last - first)) * (right - left);
    pointer.setAttribute('d', `M${x} 18V176`);
    chart.append(pointer);
    values.hidden = false;
    const frame = figure.getBoundingClientRect();
    const beside = event.clientX - frame.left + 14;
    const room = frame.width - values.offsetWidth - 4;
    values.style.left = (beside > room ? Math.max(4, event.clientX - frame.left - values.offsetWidth - 14) : beside) + 'px';
    values.style.top = event.clientY - frame.top + 10 + 'px';
  });
  chart.addEventListener('pointerleave', () => {
    values.hidden = true;
    pointer.remove();
  });
}
for (const sample of document.querySelectorAll('.sample')) {
  const output = sample.querySelector('output');
  sample.querySelector('.completion').addEventListener('click', (event) => {
    const token = event.target.closest('i');
    if (!token) return;
    for (const other of sample.querySelectorAll('.chosen')) other.classList.remove('chosen');
    token.classList.add('chosen');
    output.textContent = token.title;
  });
}
