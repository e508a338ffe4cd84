"""The runtime around the arithmetic: files, memory, warnings, errors, text on its way out; imports none of ours."""
