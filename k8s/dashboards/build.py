"""Builds the Grafana dashboards; the JSON beside this file is its output.

Run it after a change: ``python -m k8s.dashboards.build``. A test fails while the JSON is older than
this file. Every query is limited to the runs chosen at the top of the dashboard.
"""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

from grafana_foundation_sdk.builders import common, dashboard, prometheus, stat, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.common import LegendDisplayMode, LegendPlacement
from grafana_foundation_sdk.models.dashboard import DataSourceRef, VariableRefresh

from k8s.dashboards.contents import DASHBOARDS, Dashboard, Panel

FOLDER = Path(__file__).parent
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
            dashboard.QueryVariable("run")
            .label("Run")
            .query(f"label_values({spec.variable}, run)")
            .datasource(_datasource())
            .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
            .include_all(True)
            .all_value(".*")
            .multi(True)
        )
    )
    ids = itertools.count(1)
    for title, panels in spec.rows.items():
        builder = builder.with_row(dashboard.Row(title).id(next(ids)))
        for panel in panels:
            builder = builder.with_panel(_panel(panel).id(next(ids)))
    return JSONEncoder(sort_keys=True, indent=1).encode(builder.build()) + "\n"


def _datasource() -> DataSourceRef:
    return DataSourceRef(type_val="prometheus", uid="${datasource}")


def _panel(panel: Panel) -> timeseries.Panel | stat.Panel:
    built = _number() if panel.kind == "number" else _curve()
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


def _number() -> stat.Panel:
    return stat.Panel().reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))


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


if __name__ == "__main__":
    main()
