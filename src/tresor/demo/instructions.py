"""What `tresor demo` prints once it is ready: lines to paste into a second terminal."""

import sys
from pathlib import Path
from string import Template
from typing import Final

__all__ = ["render_instructions"]

_TEXT: Final = Template("""
Tresor is ready at $origin   (state in $folder, Ctrl-C to stop)

In a second terminal, in this folder:

# 1. Ask.  Request and answer are kept, byte for byte.
printf '%s' '{"model":"$model","messages":[{"role":"user","content":"What is 2+2?"}],"temperature":0}' \\
  > $folder/request.json
curl -sS --cacert $folder/ca.pem $origin/v1/chat/completions \\
  -H "Authorization: Bearer $api_key" -H "Content-Type: application/json" \\
  --data-binary @$folder/request.json -o $folder/response.json -D $folder/headers.txt && cat $folder/response.json; echo

# 2. Fetch the receipt, with the evidence it refers to.
curl -sS --cacert $folder/ca.pem -H "Authorization: Bearer $api_key" -o $folder/receipt.json \\
  -G -d include=evidence \\
  $origin/v1/receipts/$$(sed -n 's/^x-tresor-receipt-id: *\\([0-9a-f-]*\\).*/\\1/Ip' $folder/headers.txt)

# 3. Verify it against the very bytes that were exchanged, and both hops against the release root: offline.
#    There is no TEE on this machine: the evidence is SIMULATED, and has to be asked for.
$verify receipt --release-root $folder/release-root.jwk --require router,inference --allow-simulated \\
  --request $folder/request.json --response $folder/response.json $folder/receipt.json

# 4. Verify the running router itself.
$verify attest --url $origin --ca-file $folder/ca.pem --release-root $folder/release-root.jwk --allow-simulated

# Or steps 1 and 2 with the OpenAI SDK, nothing changed but the base URL (then step 3 as above):
$python - <<'END'
import ssl, httpx2, openai
client = openai.OpenAI(
    base_url="$origin/v1",
    api_key="$api_key",
    http_client=openai.DefaultHttpxClient(verify=ssl.create_default_context(cafile="$folder/ca.pem")),
)
answer = client.chat.completions.with_raw_response.create(
    model="$model", messages=[{"role": "user", "content": "What is gravity?"}], temperature=0, max_tokens=60
)
print(answer.parse().choices[0].message.content)
receipt_id = answer.headers["x-tresor-receipt-id"]
receipt = client.get("/receipts/" + receipt_id + "?include=evidence", cast_to=httpx2.Response)
for name, data in (
    ("request", answer.http_request.content), ("response", answer.content), ("receipt", receipt.content)
):
    open("$folder/" + name + ".json", "wb").write(data)
END
""")


def render_instructions(folder: Path, port: int, api_key: str, model: str) -> str:
    """Return the lines to paste, for a router on `port` whose state is in `folder`."""
    bin_folder = Path(sys.executable).parent
    return _TEXT.substitute(
        origin=f"https://localhost:{port}",
        folder=folder,
        api_key=api_key,
        model=model,
        verify=_shown(bin_folder / "tresor-verify"),
        python=_shown(Path(sys.executable)),
    )


def _shown(path: Path) -> str:
    """Return a path as somebody in the present folder would type it."""
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)
