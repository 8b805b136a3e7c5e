// The interactive parts of the page: charts with toggles and legends, and copy buttons.

const data = JSON.parse(document.getElementById("data").textContent);
const hidden = new Set(); // strategies that are switched off, in all charts
const charts = [];
let choices = 0; // radio buttons of one choice share a name

const trained = (axis) => data.trained.map((tokens) => ({ [axis]: tokens, text: `trained: ${size(tokens)}` }));
const tokens = { read: (at) => `${at} tokens` };

const KINDS = {
  perplexity: {
    x: { title: "length in tokens", log: true, measured: true, binary: true, ...tokens },
    y: { title: "perplexity", log: true, most: 1e6, near: (low) => 2.5 * low, read: figure },
    marks: trained("x"),
    axes: { x: "length", y: "perplexity" },
    note: "○ safe context   ▲ above the axis: 1e6 or more, or infinite, or beyond a close-up   × not a number   shaded: 95 % interval",
  },
  curve: {
    x: { title: "position in tokens", log: true, binary: true, ...tokens },
    y: { title: "negative log-likelihood, nats a token", log: false, near: (low) => low + 1, read: figure },
    marks: trained("x"),
    axes: { x: "position", y: "loss" },
    note: "shaded: 1.96 standard errors on either side   ▲ beyond a close-up",
  },
  wavelengths: {
    x: { title: "pair of dimensions, from the fastest", log: false, read: (at) => `pair ${at}` },
    y: { title: "wavelength in tokens", log: true, read: figure },
    marks: trained("y"),
    axes: { y: "wavelength" },
    note: "▲ does not turn",
  },
};

function choice(title, names, chosen, act) {
  const group = html("fieldset", { class: "choice" }, html("legend", {}, title));
  choices += 1;
  for (const name of names) {
    const input = html("input", { type: "radio", name: `choice-${choices}`, value: name });
    input.checked = name === chosen;
    input.addEventListener("change", () => act(name));
    group.append(html("label", {}, input, name));
  }
  return group;
}

function legend(chart) {
  const keys = chart.lines.map((line) => {
    const key = html("button", { type: "button", "aria-pressed": !hidden.has(line.name) }, label(line));
    key.addEventListener("click", () => toggle(line.name));
    for (const [event, name] of [["pointerenter", line.name], ["focus", line.name], ["pointerleave", null], ["blur", null]])
      key.addEventListener(event, () => !hidden.has(line.name) && chart.emphasise(name));
    return key;
  });
  chart.legend.replaceChildren(...keys);
}

function toggle(name) {
  if (!hidden.delete(name)) hidden.add(name);
  for (const chart of charts) {
    chart.draw();
    for (const [place, line] of chart.lines.entries())
      chart.legend.children[place].setAttribute("aria-pressed", !hidden.has(line.name));
  }
}

function build(host) {
  const kind = host.dataset.chart;
  const options = { ...KINDS[kind], label: host.dataset.label, hidden };
  const controls = html("div", { class: "controls" });
  host.replaceChildren(controls);
  const chart = new Chart(host, options);
  chart.legend = html("div", { class: "legend", role: "group", "aria-label": "Strategies to show" });
  host.append(chart.legend, html("figcaption", {}, options.note));
  const show = (lines) => { chart.show(lines); legend(chart); };
  if (kind === "perplexity") controls.append(definitions(show));
  else show(data[kind]);
  for (const [axis, title] of Object.entries(options.axes))
    controls.append(axisChoice(chart, axis, title));
  charts.push(chart);
}

function axisChoice(chart, axis, title) {
  const { options } = chart;
  const { log, near } = options[axis];
  return choice(title, ["log", "linear", ...(near ? ["close-up"] : [])], log ? "log" : "linear", (name) => {
    const close = name === "close-up";
    options[axis] = { ...options[axis], close, log: close ? log : name === "log" };
    chart.draw();
  });
}

// The toggle of the definition: its lines in the chart, and its numbers below.
function definitions(show) {
  const names = Object.keys(data.perplexity);
  const act = (chosen) => {
    show(data.perplexity[chosen]);
    for (const part of document.querySelectorAll("[data-definition]"))
      part.classList.toggle("off", part.dataset.definition !== chosen);
  };
  act(names[0]);
  return choice("definition", names, names[0], act);
}

async function copy(button) {
  const { definition } = button.closest("[data-definition]").dataset;
  const said = button.textContent;
  const text = data.texts[definition][button.dataset.copy];
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    const area = document.body.appendChild(html("textarea", {}, text)); // older browsers, or no permission
    area.select();
    document.execCommand("copy");
    area.remove();
  }
  button.textContent = "Copied";
  setTimeout(() => { button.textContent = said; }, 1500);
}

addEventListener("beforeprint", () => { // unfold everything for printing
  for (const part of document.querySelectorAll("details")) part.open = true;
});
for (const host of document.querySelectorAll("[data-chart]")) build(host);
for (const button of document.querySelectorAll("[data-copy]")) {
  button.hidden = false;
  button.addEventListener("click", () => copy(button));
}
