"""One BitTorrent client of the lab: seeds the file, or fetches it when a line comes on standard input, prints "done" and goes on giving.

ROLE TORRENT FOLDER ADDRESS PORT EVERYBODY [SETTING=VALUE...]
"""

import sys

import libtorrent as lt

role, torrent, folder, address, port, everybody, *swept = sys.argv[1:]
settings = {
    "listen_interfaces": f"{address}:{port}",
    "alert_mask": lt.alert.category_t.status_notification | lt.alert.category_t.storage_notification
    | lt.alert.category_t.error_notification,
    # Everybody is on one local network and known by address.
    "enable_dht": False,
    "enable_lsd": False,
    "enable_upnp": False,
    "enable_natpmp": False,
    "enable_outgoing_utp": False,
    "enable_incoming_utp": False,
    "allow_multiple_connections_per_ip": True,
    "connection_speed": 1000,
    "torrent_connect_boost": 255,
    # A transfer is over before the usual rounds of 15 and 30 seconds come round.
    "unchoke_interval": 1,
    "optimistic_unchoke_interval": 2,
}
settings.update((name, int(value)) for name, value in (setting.split("=") for setting in swept))
super_seeding = settings.pop("super_seeding", 0)
session = lt.session(settings)
wanted = lt.add_torrent_params()
wanted.ti = lt.torrent_info(torrent)
wanted.save_path = folder
wanted.flags &= ~(lt.torrent_flags.auto_managed | lt.torrent_flags.paused)
if role == "seed":
    wanted.flags |= lt.torrent_flags.seed_mode
    if super_seeding:
        wanted.flags |= lt.torrent_flags.super_seeding
else:
    sys.stdin.readline()
handle = session.add_torrent(wanted)
if role == "fetch":
    for other in everybody.split(","):
        if other != address:
            handle.connect_peer((other, int(port)))

while True:
    session.wait_for_alert(1000)
    for alert in session.pop_alerts():
        if role == "fetch" and isinstance(alert, lt.torrent_finished_alert):
            # Until the file is whole for others who read it.
            handle.flush_cache()
        elif role == "fetch" and isinstance(alert, lt.cache_flushed_alert):
            print("done", flush=True)
        elif alert.category() & lt.alert.category_t.error_notification:
            print(alert.message(), file=sys.stderr, flush=True)
