"""Which network interface the workers of one training meet over, on a cluster of several nodes.

Ray calls it in each worker process, before any other code of ours, so that it imports little.
"""

import os

import psutil
import ray


def use_the_nodes_interface() -> None:
    """Have Gloo meet over the interface that the node has joined the cluster with, unless the node's user chose one.

    By itself it listens at what the host's name resolves to, which on many machines (127.0.1.1 in /etc/hosts) nobody
    else can reach.
    """
    address = ray.util.get_node_ip_address()
    for name, addresses in psutil.net_if_addrs().items():
        if address in (own.address for own in addresses):
            os.environ.setdefault("GLOO_SOCKET_IFNAME", name)
