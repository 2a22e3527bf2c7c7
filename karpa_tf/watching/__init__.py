"""Watching what a classifier is asked: corrected shares of its labels, alarms when they or the input move."""

from typing import TYPE_CHECKING

from karpa_tf.lazy import public

if TYPE_CHECKING:
    from karpa_tf.watching.alarms import Cusum as Cusum
    from karpa_tf.watching.alarms import InputAlarm as InputAlarm
    from karpa_tf.watching.alarms import ShareAlarm as ShareAlarm
    from karpa_tf.watching.options import WatchOptions as WatchOptions
    from karpa_tf.watching.shares import Intervals as Intervals
    from karpa_tf.watching.shares import cell_distributions as cell_distributions
    from karpa_tf.watching.shares import corrected_shares as corrected_shares
    from karpa_tf.watching.watcher import Watcher as Watcher
else:  # a type checker would take any name for one of these
    __all__, __getattr__ = public(
        __name__,
        {
            ".alarms": "Cusum InputAlarm ShareAlarm",
            ".options": "WatchOptions",
            ".shares": "Intervals cell_distributions corrected_shares",
            ".watcher": "Watcher",
        },
    )
