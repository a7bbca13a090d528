"""What more rounds would give: if they were exact (`exact`), or like the one that was trained before (`trained`)."""

from srlm.forecast.exact import Estimate, Evidence, ForecastRow, forecast, limit
from srlm.forecast.trained import Likely, TrainedRow, trained_forecast

__all__ = [
    "Estimate",
    "Evidence",
    "ForecastRow",
    "Likely",
    "TrainedRow",
    "forecast",
    "limit",
    "trained_forecast",
]
