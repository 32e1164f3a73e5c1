"""What every method, encoder, data source, protocol and policy must keep, to be run on one's own.

    from raysurl.testing import check_method
    check_method(MyMethod)

Each check raises an AssertionError, or an InputError, of one sentence that begins with what is checked. The package's
own methods are tested by the same functions.
"""

from raysurl.testing.data import check_data
from raysurl.testing.encoders import check_encoder
from raysurl.testing.methods import check_method
from raysurl.testing.protocols import check_policy, check_protocol

__all__ = ["check_data", "check_encoder", "check_method", "check_policy", "check_protocol"]
