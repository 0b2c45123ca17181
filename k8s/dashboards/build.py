"""Builds the Grafana dashboards; the JSON beside this file is its output.

Run it after a change: ``python -m k8s.dashboards.build``. A test fails while the JSON is older than
this file. Every query is limited to the runs chosen at the top of the dashboard.
"""

from __future__ import annotations

import itertools
import re
import sys
from pathlib import Path

from grafana_foundation_sdk.builders import common, dashboard, prometheus, stat, text, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.common import (
    BigValueGraphMode,
    LegendDisplayMode,
    LegendPlacement,
)
from grafana_foundation_sdk.models.dashboard import (
    DashboardLinkType,
    DataSourceRef,
    Threshold,
    ThresholdsMode,
    ValueMap,
    ValueMappingResult,
    VariableRefresh,
)
from grafana_foundation_sdk.models.text import TextMode

from k8s.dashboards.contents import DASHBOARDS, Dashboard, Panel
from k8s.dashboards.panels import R

FOLDER = Path(__file__).parent
RUNBOOKS = FOLDER.parents[1] / "docs" / "runbooks"
WIDTH, HEIGHT = 8, 8


def build(spec: Dashboard) -> str:
    """A dashboard as JSON."""
    builder = (
        dashboard.Dashboard(spec.title)
        .uid(spec.uid)
        .description(spec.description)
        .tags(["ifsq"])
        .editable()
        .refresh("30s")
        .time("now-3h", "now")
        .timezone("browser")
        .with_variable(
            dashboard.DatasourceVariable("datasource").label("Data source").type("prometheus")
        )
        .with_variable(
            _variable("namespace", "Namespace", f"label_values({spec.variable}, namespace)")
        )
        .with_variable(
            _variable(
                "run", "Run", f'label_values({spec.variable}{{namespace=~"$namespace"}}, run)'
            )
        )
        .link(_links())
    )
    for name, colour, query in ANNOTATIONS:
        builder = builder.annotation(_annotation(name, colour, query))
    ids = itertools.count(1)
    for title, panels in spec.rows.items():
        builder = builder.with_row(dashboard.Row(title).id(next(ids)))
        for panel in panels:
            builder = builder.with_panel(_panel(panel).id(next(ids)))
    return JSONEncoder(sort_keys=True, indent=1).encode(builder.build()) + "\n"


ANNOTATIONS = (
    ("Restarts", "red", f"changes(ifsq_training_restarts_total{{{R}}}[1m]) > 0"),
    (
        "Checkpoints",
        "blue",
        f"changes(ifsq_training_checkpoint_last_success_timestamp_seconds{{{R}}}[1m]) > 0",
    ),
    ("Alerts", "orange", f'ALERTS{{alertname=~"Ifsq.+", alertstate="firing", {R}}}'),
)
"""Marked on every curve: name, colour, query."""


def build_runbooks(folder: Path = RUNBOOKS) -> str:
    """All runbooks as a dashboard, so that alerts have a link that resolves without a web site."""
    builder = (
        dashboard.Dashboard("iFSQ / Runbooks")
        .uid("ifsq-runbooks")
        .description("What each alert means and what to do.")
        .tags(["ifsq"])
        .link(_links())
    )
    for number, path in enumerate(sorted(folder.glob("*.md")), start=1):
        title, _, content = path.read_text().partition("\n")
        # Pages link to each other by file; here they are all on one page.
        content = re.sub(r"\[([^\]]+)\]\([a-z-]+\.md\)", r"\1", content)
        panel = text.Panel().title(title.removeprefix("# ")).mode(TextMode.MARKDOWN).id(number)
        builder = builder.with_panel(panel.content(content.strip()).span(12).height(14))
    return JSONEncoder(sort_keys=True, indent=1).encode(builder.build()) + "\n"


def _variable(name: str, label: str, query: str) -> dashboard.QueryVariable:
    return (
        dashboard.QueryVariable(name)
        .label(label)
        .query(query)
        .datasource(_datasource())
        .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
        .include_all(True)
        .all_value(".*")
        .multi(True)
    )


def _links() -> dashboard.DashboardLink:
    """To the other boards, with the same runs and times."""
    link = dashboard.DashboardLink("iFSQ dashboards").type(DashboardLinkType.DASHBOARDS)
    return link.tags(["ifsq"]).include_vars(True).keep_time(True).as_dropdown(True)


def _annotation(name: str, colour: str, query: str) -> dashboard.AnnotationQuery:
    built = dashboard.AnnotationQuery().name(name).datasource(_datasource()).enable(True)
    return built.icon_color(colour).expr(query)


def _datasource() -> DataSourceRef:
    return DataSourceRef(type_val="prometheus", uid="${datasource}")


def _panel(panel: Panel) -> timeseries.Panel | stat.Panel:
    built = _number(panel) if panel.kind == "number" else _curve()
    built = (
        built.title(panel.title)
        .description(panel.help)
        .datasource(_datasource())
        .unit(panel.unit)
        .span(WIDTH)
        .height(HEIGHT if panel.kind == "curve" else 4)
    )
    if panel.minimum is not None:
        built = built.min(panel.minimum)
    if panel.maximum is not None:
        built = built.max(panel.maximum)
    for index, (query, legend) in enumerate(panel.queries):
        target = prometheus.Dataquery().expr(query).legend_format(legend)
        built = built.with_target(target.ref_id(chr(ord("A") + index)).datasource(_datasource()))
    return built


def _number(panel: Panel) -> stat.Panel:
    steps = [Threshold(value=value, color=colour) for value, colour in panel.thresholds]
    thresholds = dashboard.ThresholdsConfig().mode(ThresholdsMode.ABSOLUTE).steps(steps)
    built = stat.Panel().reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
    built = built.thresholds(thresholds).graph_mode(BigValueGraphMode.NONE)
    if panel.words:
        options = {
            value: ValueMappingResult(text=text, color=colour)
            for value, text, colour in panel.words
        }
        built = built.mappings([ValueMap(options=options)])
    return built


def _curve() -> timeseries.Panel:
    legend = (
        common.VizLegendOptions()
        .display_mode(LegendDisplayMode.TABLE)
        .placement(LegendPlacement.BOTTOM)
        .show_legend(True)
        .calcs(["lastNotNull"])
    )
    return timeseries.Panel().line_width(1).fill_opacity(5).legend(legend)


def main(folder: Path = FOLDER) -> None:
    """Write every dashboard."""
    for spec in DASHBOARDS:
        path = folder / f"{spec.uid.removeprefix('ifsq-')}.json"
        path.write_text(build(spec))
        sys.stdout.write(f"{path}\n")
    (folder / "runbooks.json").write_text(build_runbooks())


if __name__ == "__main__":
    main()
