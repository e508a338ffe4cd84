"""SparseLLM (arXiv 2402.17946): the feed-forward part of a block pruned as one problem.

`method.py` is the component; `problem.py` what both variants start from; `alternating.py` the default variant with the
closed forms of `updates.py`; `released.py` the authors' code as it is.
"""

from harness.methods.sparsellm.method import SparseLLM

__all__ = ["SparseLLM"]
