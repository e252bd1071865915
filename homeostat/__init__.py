"""Keep models in production healthy: drift, late labels and paired statistics decide to promote, hold or roll back."""

__version__ = "0.1.0"
