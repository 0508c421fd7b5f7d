"""A chart that grows: points are appended in the browser, nothing that was drawn is sent again."""

from __future__ import annotations

from inspector.widgets.components import _Widget


class LossChart(_Widget):
    """Curves of a run while it runs, or of several runs at once.

    ``data`` is one message (see :func:`inspector.figures.training.chart_payload`): ``key`` names the run, ``fresh``
    begins anew, ``train`` are [step, loss, learning rate, gradient norm] and ``held`` [step, loss] to append, ``total``
    the steps of the whole; or ``runs``, each with ``name``, ``train`` and ``held``. Keys: arrows read the curve.
    Triggers ``missed``, without data, where a message goes on from points that never came here.
    """

    _name = "loss_chart"
