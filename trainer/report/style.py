"""The look of `report.html`: on a phone, on a wide screen, in the dark, in print, and without telling colours apart."""

# Okabe and Ito's colours, which the colour-blind can tell apart; lines also differ in their dashes.
STYLE = """\
  :root { color-scheme: light dark; --page: #fff; --text: #1b1d21; --quiet: #5b6068; --line: #dcdfe4; --panel: #f5f6f8;
    --blue: #0072b2; --orange: #c04f00; --grey: #8a8f98; }
  @media (prefers-color-scheme: dark) { :root { --page: #15171b; --text: #e6e8eb; --quiet: #a2a8b1; --line: #343941;
    --panel: #1f2329; --blue: #56b4e9; --orange: #f0a13a; --grey: #868d97; } }
  * { box-sizing: border-box; }
  body { font: 16px/1.5 system-ui, sans-serif; margin: 0 auto; padding: 1.5rem 1rem 4rem; max-width: 70rem;
    background: var(--page); color: var(--text); }
  h1 { font-size: 1.5rem; line-height: 1.25; margin: 0 0 .25rem; overflow-wrap: anywhere; }
  h2 { font-size: 1.2rem; margin: 2.75rem 0 .5rem; }
  h3 { font-size: 1rem; margin: 1.5rem 0 .25rem; }
  p { max-width: 44rem; margin: .5rem 0; }
  .quiet, small, figcaption, caption { color: var(--quiet); font-size: .85rem; }
  .warning { border-left: 4px solid var(--orange); padding-left: .75rem; }
  .scores { display: flex; flex-wrap: wrap; gap: .75rem; margin: 1.25rem 0; }
  .score { background: var(--panel); border-radius: .6rem; padding: .75rem 1.1rem; flex: 1 1 11rem; max-width: 20rem; }
  .score b { display: block; font-size: 2rem; line-height: 1.2; font-variant-numeric: tabular-nums; }
  .score.first b { color: var(--blue); }
  .charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 19rem), 1fr)); gap: 1rem; }
  figure { margin: 0; min-width: 0; }
  .charts figcaption { color: var(--text); font-weight: 600; font-size: .95rem; }
  .beside { display: flex; flex-wrap: wrap; gap: 0 3rem; align-items: flex-start; }
  svg { display: block; width: 100%; max-width: 30rem; height: auto; }
  svg text { font: 11.5px system-ui, sans-serif; fill: var(--quiet); }
  svg .grid { stroke: var(--line); fill: none; }
  svg polyline, svg path { fill: none; stroke-width: 2; stroke-linejoin: round; }
  svg .train { stroke: var(--grey); }
  svg .val { stroke: var(--blue); }
  svg polyline.train { stroke-dasharray: 5 3; }
  svg .even { stroke: var(--grey); stroke-width: 1; stroke-dasharray: 1.5 3; }
  svg path { stroke-width: 1; }
  svg circle { stroke-width: 1.6; fill: var(--page); }
  svg circle.val, svg circle.best { fill: var(--blue); }
  svg circle.best { stroke: var(--page); }
  .key { display: inline-block; width: 1.6rem; border-top: 2px solid var(--blue); vertical-align: .25em; }
  .key.train { border-top: 2px dashed var(--grey); }
  .key.even { border-top: 1px dotted var(--grey); }
  .wide { overflow-x: auto; max-width: 100%; }
  table { border-collapse: collapse; margin: .75rem 0; font-variant-numeric: tabular-nums; }
  caption { text-align: left; padding: .25rem 0; }
  th, td { text-align: left; padding: .3rem 1rem .3rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
  th { font-weight: 600; }
  .number { text-align: right; white-space: nowrap; }
  td small { display: block; }
  .name { overflow-wrap: anywhere; min-width: 5rem; max-width: 22rem; }
  .interval { position: relative; display: block; width: 11rem; height: 1.4em; background: linear-gradient(90deg,
    var(--line) 1px, transparent 1px) 0 0 / 25% 100%; border-right: 1px solid var(--line); }
  .interval::before { content: ""; position: absolute; top: calc(50% - 1px); border-top: 2px solid var(--blue);
    left: var(--low); width: calc(var(--high) - var(--low)); }
  .interval::after { content: ""; position: absolute; top: calc(50% - 4px); left: calc(var(--at) - 4px); width: 8px;
    height: 8px; border-radius: 50%; background: var(--blue); }
  .matrix td, .matrix th { padding: 0; border: 1px solid var(--page); font-size: .8rem; font-weight: 400; }
  .matrix td { width: 2.3rem; min-width: 2.3rem; height: 2.1rem; text-align: center; vertical-align: middle;
    background: color-mix(in srgb, var(--shade) var(--share), var(--panel)); --shade: var(--orange); }
  .matrix td.right { --shade: var(--blue); }
  .matrix td.none { color: transparent; }
  .matrix td.full { color: var(--page); }
  .matrix th[scope=row] { text-align: right; padding-right: .5rem; max-width: 11rem; overflow: hidden;
    text-overflow: ellipsis; white-space: nowrap; vertical-align: middle; position: sticky; left: 0;
    background: var(--page); }
  .matrix th[scope=col] { vertical-align: bottom; }
  .matrix th[scope=col] span { writing-mode: vertical-rl; transform: rotate(180deg); max-height: 8rem; overflow: hidden;
    text-overflow: ellipsis; white-space: nowrap; margin: .25rem auto; display: block; }
  .gallery { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 10.5rem), 1fr)); gap: 1rem; }
  .gallery.pairs { grid-template-columns: repeat(auto-fill, minmax(min(100%, 15.5rem), 1fr)); }
  .gallery .pictures { display: flex; gap: 4px; }
  .gallery img { width: 7.2rem; height: 7.2rem; object-fit: contain; background: var(--panel);
    border-radius: .3rem; }
  .gallery img[src^="data:image/png"] { image-rendering: pixelated; }
  .gallery figcaption { overflow-wrap: anywhere; line-height: 1.35; margin-top: .3rem; }
  .gallery figcaption b { color: var(--text); font-weight: 600; }
  details { margin: .75rem 0; }
  summary { cursor: pointer; color: var(--blue); }
  code, pre { font: .85rem/1.45 ui-monospace, monospace; overflow-wrap: anywhere; }
  pre { background: var(--panel); padding: 1rem; overflow: auto; border-radius: .4rem; }
  a { color: var(--blue); }
  @media (max-width: 34rem) {
    th, td { padding-right: .55rem; }
    .spare { display: none; }
    .gallery img { width: 6.6rem; height: 6.6rem; }
    .score b { font-size: 1.7rem; }
    table { font-size: .9rem; }
  }
  tr, figure, .score { break-inside: avoid; }
  h2, h3 { break-after: avoid; }
  @media print {
    :root { --page: #fff; --text: #000; --quiet: #444; --line: #ccc; --panel: #f2f2f2; --blue: #0072b2;
      --orange: #c04f00; --grey: #777; }
    body { max-width: none; padding: 0; font-size: 10pt; print-color-adjust: exact; }
    .wide { overflow: visible; }
    details::details-content { content-visibility: visible; block-size: auto; }
    pre { white-space: pre-wrap; }
  }
"""
