"""Domain separation: every constant that keeps one use of a key or hash apart from another, in one place."""

PROTOCOL_VERSION = 1

HELLO = "lightsecagg/1 hello"  # Ed25519: who joins a run, over the server's challenge
ROUND_KEY = "lightsecagg/1 round key"  # Ed25519: a client's X25519 key for one round
ENDORSEMENT = "lightsecagg/1 endorsement"  # Ed25519: the one survivor set a client stands for in a round
LIST_ENDORSEMENT = "lightsecagg/1 list endorsement"  # Ed25519: the list that a client stands for
COHORT_DIGEST = "lightsecagg/1 digest"  # SHA-256: everything all clients of a round must see alike
RUN_DIGEST = "lightsecagg/1 run digest"  # SHA-256: the same of an asynchronous run
LIST_DIGEST = "lightsecagg/1 list digest"  # SHA-256: a list of uploads, each with its digest
UPLOAD_DIGEST = "lightsecagg/1 upload digest"  # SHA-256: one upload of it
SHARE_KEY = b"lightsecagg/1 share key"  # HKDF: AES-256-GCM key of one client's share for another
KIND_SEED = "seed"  # associated data: a share that is the expansion of a seed
KIND_ELEMENTS = "elements"  # associated data: a share that is sent element by element
