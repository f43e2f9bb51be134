"""Which columns share a chart of report.html."""

from __future__ import annotations

Charts = tuple[tuple[str, tuple[str, ...], bool], ...]
"""Of each chart the title, columns of one scale, and whether the scale is logarithmic."""

CHARTS: Charts = (
    ("Accuracy", ("train/accuracy", "test/accuracy"), False),
    ("Loss", ("train/loss", "test/loss"), True),
    ("Size of the backpropagated gradient ‖G_F‖", ("gradient/norm",), False),
    ("What drives the nodes: independence and coupling", ("gradient/independence", "gradient/coupling"), False),
    (
        "Alignments of residual and readout",
        ("gradient/residual_alignment", "gradient/readout_alignment", "gradient/readout_equilibrium"),
        False,
    ),
    ("Coupling of pairs of nodes", ("gradient/node_coupling",), False),
    ("Effective ridge η̂", ("gradient/effective_ridge",), True),
    ("Energy at unit norm", ("energy/mean", "energy/max"), False),
    ("Energy over the predicted maximum", ("energy/relative",), False),
    ("Purity of the nodes", ("features/purity",), False),
    ("Irreps that some node has learned", ("features/coverage",), False),
    ("Distance from the lazy kernel", ("features/gram_offdiagonal", "features/kernel_distance"), False),
    ("Relative updates", ("update/hidden", "update/output"), True),
    ("Turning of the updates", ("update/hidden_cosine_distance", "update/output_cosine_distance"), True),
    ("Eigengap of the last 20 updates of W", ("update/eigengap",), True),
    ("Repulsion of similar nodes", ("interaction/repelled_share", "interaction/repulsion"), False),
    ("Norms of the weights", ("weights/hidden_norm", "weights/output_norm"), False),
)
MISSING_CHARTS: Charts = (
    ("Irreps of which the outputs explain more than half", ("features/explained",), False),
    (
        "Share in missing irreps, over their share of the target",
        ("interaction/missing_residual", "interaction/missing_gradient"),
        False,
    ),
    ("Energy of the residual, E_S", ("energy/residual_mean", "energy/residual_new"), True),
    ("Fresh nodes that end in missing irreps", ("energy/residual_missing",), False),
)
PROGRESS_CHARTS: Charts = (
    ("Restricted and excluded loss", ("circuits/restricted_loss", "circuits/excluded_loss"), True),
    ("Inequality of the irreps (Gini)", ("circuits/logit_gini", "circuits/weight_gini"), False),
    ("Norm of all weights", ("circuits/weight_norm",), False),
    ("Softmax collapse", ("circuits/softmax_collapse",), False),
    ("Directions of the features", ("spectra/features_effective_rank", "spectra/features_participation"), False),
    ("Directions of the weights", ("spectra/weights_effective_rank", "spectra/weights_participation"), False),
    ("Alignment of the tangent kernel with the task", ("spectra/kernel_alignment",), False),
)
# Every other column is in a chart of its first word.
OTHER_TITLES = {"optimizer": "Learning rates", "stage": "Stage"}
