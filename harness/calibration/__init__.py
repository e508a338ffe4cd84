"""Walking the blocks of a model over calibration windows, and questions to the model."""
