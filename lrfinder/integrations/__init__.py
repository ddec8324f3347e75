"""Integrations: range tests and records where people train already.

Each module is for one library, needs its extra (`pip install "lrfinder[lightning]"`,
`"lrfinder[transformers]"`), and uses the public names of `lrfinder` alone.
"""
