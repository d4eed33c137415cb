"""Event → broker, and nothing lost on the way.

    inference thread ──put──▶ outbox (SQLite, on disk when put returns)
                                  │
    delivery thread ──────────────┴──▶ mqtt (one session, one thread) ──▶ broker

- `topics`: every topic and payload in one place, pure;
- `outbox`: store and forward, with a byte budget and an account of what did not fit;
- `mqtt`: the session with the broker; makes one attempt, knows nothing of retry;
- `delivery`: the thread between them: back-off, what is sent again, what is parked.
"""

from edge.delivery.delivery import Delivery

__all__ = ["Delivery"]
