// Signs and verifies receipts with the npm package `jose`: one JSON request on standard input, one JSON answer out.
//
//   {"jwks": {...}, "tokens": ["..."]}                      ->  [{"header": ..., "claims": ...} | {"error": "..."}]
//   {"private_jwk": {...}, "header": {...}, "claims": ...}  ->  "<compact JWS>"
//   {"thumbprints_of": [{...}]}                             ->  ["<RFC 7638 thumbprint>"]

import { SignJWT, calculateJwkThumbprint, createLocalJWKSet, importJWK, jwtVerify } from 'jose'
import { text } from 'node:stream/consumers'

async function verify({ jwks, tokens }) {
  const keys = createLocalJWKSet(jwks)
  return Promise.all(
    tokens.map(async (token) => {
      try {
        const options = { algorithms: ['ES256'], typ: 'tresor-receipt+jwt' }
        const { protectedHeader: header, payload: claims } = await jwtVerify(token, keys, options)
        return { header, claims }
      } catch (error) {
        return { error: error.code }
      }
    }),
  )
}

async function sign({ private_jwk, header, claims }) {
  return new SignJWT(claims).setProtectedHeader(header).sign(await importJWK(private_jwk, 'ES256'))
}

const request = JSON.parse(await text(process.stdin))
const answer = request.tokens
  ? await verify(request)
  : request.claims
    ? await sign(request)
    : await Promise.all(request.thumbprints_of.map((jwk) => calculateJwkThumbprint(jwk)))
console.log(JSON.stringify(answer))
