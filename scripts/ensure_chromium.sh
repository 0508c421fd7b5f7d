#!/bin/sh
# ensure_chromium.sh PYTHON: prints the path of a Chromium that starts; installs one where there is none.
# Order: VLM_INSPECTOR_CHROMIUM, one on PATH, Playwright's (present or downloaded), Debian's through apt.
set -eu
python=$1

starts() {
    [ -n "$1" ] && [ -x "$1" ] || return 1
    # A downloaded browser can lack the system's libraries, which only starting it shows.
    "$1" --headless --no-sandbox --disable-gpu --dump-dom about:blank >/dev/null 2>&1
}

offer() {
    if starts "$1"; then
        echo "$1"
        exit 0
    fi
}

on_path() {
    for name in chromium chromium-browser google-chrome google-chrome-stable; do
        path=$(command -v "$name" 2>/dev/null) && offer "$path"
    done
    return 0
}

playwrights() {
    "$python" -c '
from playwright.sync_api import sync_playwright
with sync_playwright() as playwright:
    print(playwright.chromium.executable_path)
' 2>/dev/null || true
}

if [ -n "${VLM_INSPECTOR_CHROMIUM:-}" ]; then
    offer "$VLM_INSPECTOR_CHROMIUM"
    echo "VLM_INSPECTOR_CHROMIUM is $VLM_INSPECTOR_CHROMIUM, which does not start: point it at a Chromium or unset it." >&2
    exit 2
fi
on_path
offer "$(playwrights)"
echo "No Chromium found; asking Playwright for one." >&2
"$python" -m playwright install chromium >&2 || true
offer "$(playwrights)"

sudo=""
[ "$(id -u)" = 0 ] || sudo="sudo"
if command -v apt-get >/dev/null; then
    echo "Playwright's Chromium does not start here; asking apt for Debian's." >&2
    $sudo apt-get update -qq >&2 && $sudo apt-get install -y -qq chromium >&2 || true
    on_path
fi
echo "No Chromium that starts: install one and name it in VLM_INSPECTOR_CHROMIUM." >&2
exit 2
