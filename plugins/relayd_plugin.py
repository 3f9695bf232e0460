"""Makes ``twistd relayd`` known. relayd itself is imported only when the service is made."""

from twisted.application.service import ServiceMaker

relayd = ServiceMaker(
    "relayd",
    "relayd.service",
    "The SMTP relay of an Active Directory network.",
    "relayd",
)
