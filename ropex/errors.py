"""The one exception that Python has no name for."""


class UnsupportedModel(TypeError):
    """The model has no rotary embedding that ropex can patch exactly; the message says why."""
