"""The template of `validation.html` (jinja2, autoescaped)."""

# ruff: noqa: E501  a page, not code

PAGE = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>Validation report: {{ protocol.title }} {{ facts.version }}</title>
<style>
:root { color-scheme: light; --ink: #1b2733; --soft: #566573; --line: #dde3e8; --blue: #1f5f8b;
  --good: #0f766e; --bad: #a3283a; --open: #8a6100; }
* { box-sizing: border-box; }
body { margin: 0; background: #f3f5f7; color: var(--ink);
  font: 16px/1.55 "Segoe UI", system-ui, -apple-system, "Helvetica Neue", Arial, sans-serif; }
main { max-width: 62rem; margin: 0 auto; padding: 2rem 1.25rem 4rem; }
header p.kind { margin: 0; color: var(--soft); font-size: .85rem; letter-spacing: .06em;
  text-transform: uppercase; }
h1 { margin: .2rem 0 .5rem; font-size: 1.75rem; line-height: 1.25; }
h2 { margin: 0 0 .75rem; font-size: 1.15rem; }
section { background: #fff; border: 1px solid var(--line); border-radius: 10px; padding: 1.25rem 1.4rem;
  margin-top: 1.1rem; }
p { margin: .5rem 0; max-width: 48rem; }
.note { color: var(--soft); font-size: .9rem; }
.verdict { border-left: 6px solid var(--good); }
.verdict.failed { border-left-color: var(--bad); }
.verdict.untestable { border-left-color: var(--open); }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr)); gap: .75rem 1.5rem;
  margin-top: .9rem; }
.cards div { border-top: 2px solid var(--line); padding-top: .45rem; }
.cards b { display: block; font-size: 1.45rem; font-weight: 600; line-height: 1.2; }
.cards span { color: var(--soft); font-size: .85rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .92rem; font-variant-numeric: tabular-nums; }
th { text-align: left; font-weight: 600; color: var(--soft); border-bottom: 2px solid var(--line);
  padding: .4rem .8rem .4rem 0; vertical-align: bottom; }
td { border-bottom: 1px solid var(--line); padding: .45rem .8rem .45rem 0; vertical-align: top; }
tr.pooled td { font-weight: 600; border-bottom: 0; border-top: 2px solid var(--line); }
td.name, td.number { white-space: nowrap; }
td small { display: block; color: var(--soft); font-weight: 400; font-size: .82rem; }
.mark { display: inline-block; min-width: 6.2em; text-align: center; border-radius: 4px; padding: .05rem .5rem;
  font-size: .82rem; font-weight: 600; color: #fff; background: var(--good); white-space: nowrap; }
.mark.failed { background: var(--bad); }
.mark.untestable { background: var(--open); }
img { display: block; width: 100%; height: auto; }
img.square { max-width: 33rem; }
code { font-size: .85em; overflow-wrap: anywhere; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .3rem 1.2rem; margin: 0; font-size: .92rem; }
dt { color: var(--soft); } dd { margin: 0; }
@media (max-width: 36rem) { dl { grid-template-columns: 1fr; } dt { margin-top: .5rem; }
  section { padding: 1rem; } h1 { font-size: 1.4rem; } }
@media print { body { background: #fff; } main { max-width: none; padding: 0; }
  section { break-inside: avoid; border: 0; border-top: 1px solid var(--line); border-radius: 0; } }
</style>
</head>
<body>
<main>
<header>
<p class="kind">Validation report &middot; investigational, not cleared</p>
<h1>{{ protocol.title }}</h1>
<p>{{ protocol.intended_use }}</p>
</header>

<section class="verdict {{ decided }}">
<h2>{% if decided == "passed" %}Every acceptance gate passed{% elif decided == "failed" %}Stopped: an \
acceptance gate failed{% else %}Stopped: an acceptance gate could not be decided{% endif %}</h2>
<p class="note">Release {{ facts.version }} of study <code>{{ protocol.study }}</code>, {{ facts.rounds }} \
training rounds over {{ sites|length }} hospitals. Validated on patients whom training never saw, at the \
hospital that treats them; no record and no score left a hospital.</p>
<div class="cards">
<div><b>{{ "%.3f"|format(pooled.auroc.value) if pooled.auroc is defined else "–" }}</b>\
<span>pooled AUROC{% if pooled.auroc is defined and pooled.auroc.lower is defined %}, 95 % \
{{ "%.3f"|format(pooled.auroc.lower) }} to {{ "%.3f"|format(pooled.auroc.upper) }}{% endif %}</span></div>
<div><b>{{ "%.1f %%"|format(100 * pooled.accuracy.value) if pooled.accuracy is defined else "–" }}</b>\
<span>accuracy at threshold {{ facts.decision_threshold }}</span></div>
<div><b>{{ pooled.n }}</b><span>holdout patients\
{% if pooled.events is not none %}, {{ pooled.events }} events{% if suppressed %} where shown{% endif %}{% endif %}\
</span></div>
<div><b>{{ "ε = %.2f"|format(facts.epsilon) if facts.epsilon is not none else "none" }}</b>\
<span>{% if facts.epsilon is not none %}differential privacy per \
{{ "hospital" if protocol.privacy.mode == "site" else "patient" }}, δ = {{ "%.0e"|format(facts.delta) }}\
{% elif protocol.privacy.mode == "none" %}differential privacy: this study uses none\
{% else %}stated epsilon: a hospital states none{% endif %}</span></div>
</div>
</section>

<section>
<h2>Acceptance gates</h2>
<p class="note">Fixed in the protocol before training. A gate that the data cannot decide stops a release as a \
failed one does.</p>
{% if facts.gates %}
<div class="scroll"><table>
<tr><th>Result</th><th>Gate</th><th>Found</th></tr>
{% for gate in facts.gates %}
<tr><td>{% if gate.passed %}<span class="mark">passed</span>\
{% elif gate.passed is none %}<span class="mark untestable">not testable</span>\
{% else %}<span class="mark failed">failed</span>{% endif %}</td>
<td>{{ gate.gate | replace(">=", "≥") | replace("<=", "≤") }}</td><td>{{ gate.detail }}</td></tr>
{% endfor %}
</table></div>
{% else %}<p>The protocol declares no gate.</p>{% endif %}
</section>

<section>
<h2>Discrimination by hospital</h2>
<img src="{{ forest }}" alt="Forest plot: AUROC of each hospital with its 95 % interval and the pooled estimate; \
the numbers are in the table below">
<p class="note">AUROC: the chance that a patient with the outcome is given a higher risk than one without; 0.5 is \
no better than chance. Intervals: DeLong. Pooled: random effects over hospitals (DerSimonian-Laird, \
Hartung-Knapp), so it allows for hospitals that differ.\
{% set between = (pooled.heterogeneity | default({})).auroc | default({}) %}{% if between %} Between hospitals: I² = \
{{ "%.0f"|format(100 * between.i2) }} %\
{% if between.new_site_lower is defined %}; at a new hospital the AUROC is expected between \
{{ "%.3f"|format(between.new_site_lower) }} and \
{{ "%.3f"|format(between.new_site_upper) }} (95 % prediction interval){% endif %}.{% endif %}</p>
{% if facts.achievable_auroc %}<p class="note">The cohorts are simulated, so the best AUROC that any model could \
reach is known: {% for name, value in facts.achievable_auroc.items() %}{{ name }} {{ "%.3f"|format(value) }}\
{{ ", " if not loop.last else "." }}{% endfor %}</p>{% endif %}
</section>

<section>
<h2>Every metric</h2>
<div class="scroll"><table>
<tr><th>Hospital</th><th>Patients</th><th>Events</th>{% for key, title in columns %}<th>{{ title }}</th>\
{% endfor %}</tr>
{% for name, tree in sites.items() %}
<tr><td class="name">{{ name }}</td><td>{{ tree.n if tree.n is not none else "withheld" }}</td>\
<td>{{ tree.events if tree.events is not none else "withheld" }}</td>\
{% for key, title in columns %}<td class="number">{{ tree[key] | number if key in tree else ("withheld" if tree.suppressed is \
defined else "–") }}{% if key in tree %}<small>{{ tree[key] | interval }}</small>{% endif %}</td>{% endfor %}</tr>
{% endfor %}
<tr class="pooled"><td class="name">pooled</td><td>{{ pooled.n }}</td>\
<td>{{ pooled.events if pooled.events is not none else "–" }}</td>\
{% for key, title in columns %}<td class="number">{{ pooled[key] | number if key in pooled else "–" }}\
{% if key in pooled %}<small>{{ pooled[key] | interval }}</small>{% endif %}</td>{% endfor %}</tr>
</table></div>
<p class="note">Below each value its 95 % interval. Accuracy at the decision threshold \
{{ facts.decision_threshold }}. {{ facts.threshold_source }} Brier: 0 is perfect. Calibration slope: 1 is perfect, below 1 the predictions are \
too extreme. Calibration intercept: 0 is perfect, above 0 the model predicts too little risk.</p>
{% if suppressed %}<p class="note"><b>Withheld</b> at {{ suppressed | join(", ") }}: fewer than {{ 2 * cell }} \
patients in one class, so only accuracy and the number of patients may leave (fewer than {{ cell }} patients: \
nothing). A gate on every hospital is judged on the others and names these.</p>{% endif %}
</section>

{% if calibration %}
<section>
<h2>Calibration by hospital</h2>
<img class="square" src="{{ calibration }}" alt="Calibration curves: observed share of events against predicted \
risk, one curve per hospital">
<p class="note">On the dashed line, predicted risk is what happens. Above it the model predicts too little risk, \
below it too much. Every point holds at least {{ cell }} patients with and {{ cell }} without the outcome.</p>
</section>
{% endif %}

{% if subgroups %}
<section>
<h2>Subgroups, pooled</h2>
<img src="{{ subgroups }}" alt="Pooled AUROC of each subgroup with its 95 % interval">
<p class="note">A group with fewer than {{ cell }} patients in a class at a hospital is withheld there, and \
so are the counts of another one from which it could be computed.\
{% for code in codes %} {{ code }}.{% endfor %}</p>
</section>
{% endif %}

{% if parity %}
<section>
<h2>The exported file gives the same answers</h2>
<div class="scroll"><table>
<tr><th>Hospital</th><th>Largest difference in probability</th><th>Decisions changed</th></tr>
{% for site, found in parity %}
<tr><td class="name">{{ site }}</td><td>{{ "%.1e"|format(found.max_abs_difference) }} (at most \
{{ "%.0e"|format(found.tolerance) }})</td><td>{{ found.decisions_flipped }}</td></tr>
{% endfor %}
</table></div>
<p class="note">model.onnx in onnxruntime against the trained model, on each hospital's own holdout.</p>
</section>
{% endif %}

<section>
<h2>What this report is about</h2>
<dl>
<dt>Study protocol</dt><dd><code>{{ protocol.hash }}</code></dd>
<dt>Model</dt><dd><code>{{ facts.model }}</code></dd>
<dt>Code version</dt><dd>{{ facts.code_version }}</dd>
<dt>Made</dt><dd>{{ facts.created }}</dd>
<dt>Outcome</dt><dd>{{ protocol.label.name }}: {{ protocol.label.positive }}</dd>
<dt>Holdout</dt><dd>{% if protocol.holdout.method == "keyed" %}\
{{ "%.0f"|format(100 * protocol.holdout.fraction) }} % of patients, chosen by a keyed hash before training\
{% else %}a list fixed at the hospital{% endif %}</dd>
</dl>
</section>
</main>
</body>
</html>
"""
