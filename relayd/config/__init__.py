"""relayd.toml -> frozen typed values, or every fault in it with file and line.

``loading`` is the way through: ``document`` (TOML with positions), ``reading`` (against ``schema``, by
``readers``), ``served`` (what this version can do), ``building`` (defaults and inheritance), ``checks``
(values against each other).
"""

from relayd.config.faults import ConfigFault, ConfigFaults
from relayd.config.integrated import system_keytab
from relayd.config.loading import Loaded, load
from relayd.config.location import default_file
from relayd.config.readers import duration, size

__all__ = ["ConfigFault", "ConfigFaults", "Loaded", "default_file", "duration", "load", "size", "system_keytab"]
