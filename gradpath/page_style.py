"""Style sheet of the report page."""

STYLE = """
:root { color-scheme: light dark;
  --bg: #ffffff; --panel: #f6f7f9; --ink: #16181d; --soft: #5d6470; --line: #dfe3e8; --accent: #4269d0; }
@media (prefers-color-scheme: dark) { :root {
  --bg: #111318; --panel: #1a1d24; --ink: #e8eaee; --soft: #9aa1ad; --line: #2d323c; --accent: #8aa6f0; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--bg); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
main { max-width: 1180px; margin: 0 auto; padding: 40px 28px 80px; }
h1 { font-size: 38px; line-height: 1.1; margin: 0; letter-spacing: -.02em; }
h2 { font-size: 21px; margin: 52px 0 16px; letter-spacing: -.01em; }
h3 { font-size: 14px; font-weight: 600; margin: 0 0 8px; }
.eyebrow { margin: 0 0 6px; color: var(--soft); font-size: 13px; }
.lead { margin: 10px 0 0; font-size: 17px; color: var(--soft); max-width: 70ch; }
.note, .empty { color: var(--soft); }
.note { margin-top: 28px; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(230px, 1fr));
  gap: 16px; margin-top: 32px; }
.card, figure { background: var(--panel); border: 1px solid var(--line); border-radius: 12px; }
.card { padding: 18px 20px; }
.card h3, figcaption, .fine { color: var(--soft); }
.big { font-size: 46px; font-weight: 650; line-height: 1.1; margin: 2px 0 8px; letter-spacing: -.03em;
  font-variant-numeric: tabular-nums; }
.big small { font-size: 20px; font-weight: 500; color: var(--soft); }
.fine { margin: 4px 0 0; font-size: 12.5px; }
.figures { display: grid; grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 16px; align-items: start; }
@media (max-width: 820px) { .figures { grid-template-columns: minmax(0, 1fr); } }
figure { margin: 0; padding: 18px 20px 14px; min-width: 0; }
figure.wide { grid-column: 1 / -1; overflow-x: auto; }
figure img, figure video { width: 100%; border-radius: 8px; display: block; }
figcaption { font-size: 13px; margin-top: 8px; }
svg { display: block; width: 100%; height: auto; }
svg text { font-size: 12px; fill: var(--ink); }
svg .tick, svg .label, svg .sub { fill: var(--soft); font-size: 11.5px; }
svg .end { text-anchor: end; } svg .mid { text-anchor: middle; }
.grid { stroke: var(--line); } .axis { stroke: var(--soft); }
.line { fill: none; stroke-width: 2; stroke-linejoin: round; stroke-linecap: round; }
.line.faint { opacity: .28; stroke-width: 1.2; }
.legend { display: flex; flex-wrap: wrap; gap: 4px 16px; margin-bottom: 8px;
  font-size: 12.5px; color: var(--soft); }
.legend .key { display: inline-block; width: 18px; height: 4px; margin-right: 6px; vertical-align: middle; }
.legend .key .line { stroke-width: 3; }
.interval { height: 18px; width: 100%; max-width: 260px; }
.interval .track { fill: var(--line); } .interval .fill { fill: var(--accent); }
.interval .whisker { stroke: var(--ink); stroke-width: 1.4; fill: none; }
.graph { margin: 0 auto; min-width: 720px; }
.graph rect { fill: var(--bg); stroke: var(--line); stroke-width: 1.4; }
.graph .external rect { fill: none; stroke-dasharray: 4 4; }
.graph text { font-size: 12.5px; }
.graph .name { font-weight: 650; font-size: 14.5px; }
.graph circle { fill: var(--accent); }
.wire { fill: none; stroke: var(--accent); stroke-width: 1.8; opacity: .75; }
.wire.carry { stroke: #d98324; stroke-dasharray: 6 5; }
table { border-collapse: collapse; width: 100%; font-size: 13.5px; }
th, td { text-align: left; padding: 5px 12px 5px 0; vertical-align: top;
  border-bottom: 1px solid var(--line); }
th { font-weight: 500; color: var(--soft); }
td { font-variant-numeric: tabular-nums; overflow-wrap: anywhere; }
.mono td, pre, code { font-size: 13px;
  font-family: ui-monospace, "SF Mono", Menlo, "DejaVu Sans Mono", monospace; }
pre { background: var(--panel); border: 1px solid var(--line); border-radius: 12px; padding: 14px 18px;
  overflow-x: auto; margin: 0 0 20px; }
"""
