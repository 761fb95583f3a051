-- name: add_customer
INSERT INTO customers (name, plan, created_at, required_claims) VALUES (:name, :plan, :now, :required_claims)
ON CONFLICT (name) DO NOTHING
RETURNING id, name, plan, created_at, required_claims;

-- name: change_customer
UPDATE customers SET plan = coalesce(:plan, plan), required_claims = coalesce(:required_claims, required_claims)
WHERE name = :name
RETURNING id, name, plan, created_at, required_claims;

-- name: customers
SELECT id, name, plan, created_at, required_claims FROM customers ORDER BY id;

-- name: add_api_key
INSERT INTO api_keys (digest, id, customer_id, label, created_at)
SELECT :digest, :key_id, id, :label, :now FROM customers WHERE name = :customer
RETURNING id;

-- name: api_keys
SELECT k.id, c.id, c.name, c.plan, k.digest, k.label, k.created_at, k.revoked_at, c.required_claims
FROM api_keys AS k JOIN customers AS c ON c.id = k.customer_id
WHERE :customer IS NULL OR c.name = :customer
ORDER BY k.created_at, k.id;

-- name: find_api_key
SELECT k.id, c.id, c.name, c.plan, k.digest, k.label, k.created_at, k.revoked_at, c.required_claims
FROM api_keys AS k JOIN customers AS c ON c.id = k.customer_id
WHERE k.digest = :digest;

-- name: revoke_api_key
UPDATE api_keys SET revoked_at = :now WHERE id = :key_id AND revoked_at IS NULL
RETURNING id;

-- name: register_signing_key
INSERT INTO signing_keys (kid, x, y, created_at) VALUES (:kid, :x, :y, :now)
ON CONFLICT (kid) DO NOTHING;

-- name: find_signing_key
SELECT kid, x, y, created_at, retired_at,
       max(last_seq, coalesce((SELECT max(seq) FROM receipts WHERE key_id = signing_keys.id), 0))
FROM signing_keys WHERE kid = :kid;

-- name: retire_signing_key
UPDATE signing_keys SET retired_at = :now WHERE kid = :kid AND retired_at IS NULL;

-- name: signing_keys
SELECT kid, x, y, created_at, retired_at,
       max(last_seq, coalesce((SELECT max(seq) FROM receipts WHERE key_id = signing_keys.id), 0))
FROM signing_keys ORDER BY id;

-- name: request_rotation
UPDATE rotation SET requested_at = :now;

-- name: rotation_requested_at
SELECT requested_at FROM rotation;

-- name: signing_key_id
SELECT id FROM signing_keys WHERE kid = :kid;

-- name: append_receipts
INSERT INTO receipts (id, customer_id, key_id, seq, issued_at, protected, payload, signature) VALUES

-- name: find_receipt
SELECT id, protected, payload, signature FROM receipts WHERE id = :id AND customer_id = :customer_id;

-- name: receipt_position
SELECT n FROM receipts WHERE id = :id AND customer_id = :customer_id;

-- name: list_receipts
SELECT id, protected, payload, signature FROM receipts
WHERE customer_id = :customer_id AND n < :before
ORDER BY n DESC LIMIT :limit;

-- name: keep_last_seq
UPDATE signing_keys SET last_seq = max(last_seq, coalesce((SELECT max(seq) FROM receipts WHERE key_id = signing_keys.id), 0));

-- name: delete_receipts
DELETE FROM receipts WHERE n IN (
    SELECT n FROM receipts WHERE n <= (SELECT min(n) + 100000 FROM receipts) AND issued_at < :issued_before
    ORDER BY n LIMIT :limit
)
RETURNING n;

-- name: put_evidence
INSERT INTO evidence (digest, media_type, used_until, data) VALUES (:digest, :media_type, :used_until, :data)
ON CONFLICT (digest) DO UPDATE SET used_until = max(used_until, excluded.used_until);

-- name: find_evidence
SELECT digest, media_type, data FROM evidence WHERE digest = :digest;

-- name: delete_unused_evidence
DELETE FROM evidence WHERE used_until < :issued_before AND used_until < coalesce((SELECT issued_at FROM receipts ORDER BY n LIMIT 1), :issued_before);

-- name: take_permits
INSERT INTO permits (customer_id, window, began_at, taken)
VALUES (:customer_id, :window, :began_at, min(:wanted, :limit))
ON CONFLICT (customer_id, window) DO UPDATE SET
    taken = CASE WHEN began_at < excluded.began_at THEN excluded.taken
                 ELSE max(taken, min(taken + :wanted, :limit)) END,
    began_at = max(began_at, excluded.began_at)
RETURNING taken;

-- name: permits_taken
SELECT taken FROM permits WHERE customer_id = :customer_id AND window = :window AND began_at >= :began_at;
