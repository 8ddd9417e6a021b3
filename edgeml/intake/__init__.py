"""Models in, safely: every untrusted file is parsed in a limited subprocess."""
