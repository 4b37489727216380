"""`python -m sparsegan`: the same as the `sparsegan` command."""

from .cli import main

raise SystemExit(main())
