"""Changes of a model's class (a mixture of experts out of a dense model), one file each."""
