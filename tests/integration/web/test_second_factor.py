"""TOTP over HTTP: enrolment, the two steps of a login, and what needs a fresh proof."""

from __future__ import annotations

from typing import Any

from authenticator import Phone, unuse

PASSWORD = "correct horse battery staple"


async def enrol(site: Any, client: Any, name: str = "ann") -> tuple[Phone, list[str]]:
    begun = await client.post("/v1/me/totp")
    assert begun.status_code == 200, begun.text
    phone = Phone(begun.json()["secret"])
    assert f"secret={begun.json()['secret']}" in begun.json()["otpauth_uri"]
    confirmed = await client.post("/v1/me/totp/confirm", json={"code": phone.code()})
    assert confirmed.status_code == 200, confirmed.text
    await unuse(site.pool)
    return phone, confirmed.json()["recovery_codes"]


async def log_in(client: Any, **changes: str) -> Any:
    return await client.post("/v1/token", data={"username": "ann", "password": PASSWORD, **changes})


async def age(site: Any) -> None:
    """Make every proof as old as one that does not count any more."""
    await site.pool.execute(
        "UPDATE sessions SET password_at = now() - interval '1 day',"
        " factor_at = factor_at - interval '1 day'"
    )


async def test_a_login_takes_two_steps_once_there_is_a_factor(site: Any, problem: Any) -> None:
    async with site.client("ann") as ann, site.client() as client:
        assert (await ann.get("/v1/me/totp")).json()["enrolled"] is False
        phone, _ = await enrol(site, ann)
        about = (await ann.get("/v1/me/totp")).json()
        assert about["enrolled"] is True and about["recovery_codes_left"] == 10
        problem(await ann.post("/v1/me/totp"), 409, "factor_exists")
        waiting = problem(await log_in(client), 401, "mfa_required")
        problem(await log_in(client, password="wrong"), 401, "invalid_credentials")
        mfa_token = waiting["mfa_token"]
        # Attack 8: good for nothing else.
        for answer in (
            await client.get("/v1/me", headers={"Authorization": f"Bearer {mfa_token}"}),
            await client.post("/v1/token/refresh", json={"refresh_token": mfa_token}),
        ):
            problem(answer, 401, "invalid_token")
        step = {"mfa_token": mfa_token, "code": phone.wrong(1)[0]}
        problem(await client.post("/v1/token/mfa", json=step), 401, "invalid_code")
        step["code"] = phone.code()
        answer = await client.post("/v1/token/mfa", json=step)
        assert answer.status_code == 200, answer.text
        problem(await client.post("/v1/token/mfa", json=step), 401, "invalid_token")
        headers = {"Authorization": f"Bearer {answer.json()['access_token']}"}
        items = (await client.get("/v1/sessions", headers=headers)).json()["items"]
        assert items[0]["second_factor"] is True
        for table in ("mfa_challenges", "recovery_codes", "journal"):
            assert mfa_token not in str(await site.pool.fetch(f"SELECT * FROM {table}"))


async def test_attack_18_a_code_is_good_once(site: Any, problem: Any) -> None:
    async with site.client("ann") as ann, site.client() as client:
        phone, _ = await enrol(site, ann)
        code = phone.code()
        assert (await log_in(client, otp=code)).status_code == 200
        problem(await log_in(client, otp=code), 401, "invalid_code")
        waiting = (await log_in(client)).json()["mfa_token"]
        answer = await client.post("/v1/token/mfa", json={"mfa_token": waiting, "code": code})
        problem(answer, 401, "invalid_code")
        problem(await log_in(client, otp=phone.code(-1)), 401, "invalid_code")


async def test_attack_18_guessing_codes_is_429(site: Any, problem: Any) -> None:
    async with site.client("ann") as ann, site.client() as client:
        phone, recovery = await enrol(site, ann)
        token = (await log_in(client)).json()["mfa_token"]
        answers = []
        *wrong, last = phone.wrong(8)
        for code in wrong:
            body = {"mfa_token": token, "code": code}
            answers.append(await client.post("/v1/token/mfa", json=body))
        assert [answer.status_code for answer in answers] == [401] * 7
        assert {answer.json()["code"] for answer in answers[5:]} == {"invalid_token"}, "used up"
        token = (await log_in(client)).json()["mfa_token"]
        answer = await client.post("/v1/token/mfa", json={"mfa_token": token, "code": last})
        problem(answer, 429, "too_many_attempts")
        assert int(answer.headers["retry-after"]) >= 1
        events = (await ann.get("/v1/me/security-events")).json()["items"]
        failed = [one for one in events if one["kind"] == "security.factor_failed"]
        assert [one["data"]["failures"] for one in failed] == [4, 2, 1]
        await site.pool.execute("DELETE FROM login_failures")
        answer = await client.post(
            "/v1/token/mfa", json={"mfa_token": token, "code": recovery[0].lower()}
        )
        assert answer.status_code == 200, answer.text


async def test_recovery_codes_are_good_once_each(site: Any, problem: Any) -> None:
    async with site.client("ann") as ann, site.client() as client:
        _, codes = await enrol(site, ann)
        assert len(set(codes)) == 10
        assert (await log_in(client, otp=codes[0])).status_code == 200
        problem(await log_in(client, otp=codes[0]), 401, "invalid_code")
        assert (await ann.get("/v1/me/totp")).json()["recovery_codes_left"] == 9
        fresh = (await ann.post("/v1/me/totp/recovery-codes")).json()["recovery_codes"]
        problem(await log_in(client, otp=codes[1]), 401, "invalid_code")
        assert (await log_in(client, otp=fresh[0])).status_code == 200
        stored = str(await site.pool.fetch("SELECT * FROM recovery_codes"))
        assert fresh[1] not in stored and fresh[1].replace("-", "") not in stored


async def test_what_moves_money_out_needs_a_fresh_proof(site: Any, problem: Any) -> None:
    async with site.client("ann") as ann:
        cash = await site.cash(ann, USDT="100")
        body = {
            "account_id": cash["id"],
            "asset": "USDT",
            "amount": "1",
            "destination": "DE89",
        }

        async def withdraw() -> Any:
            return await ann.post("/v1/withdrawals", json=body)

        assert (await withdraw()).status_code == 201, "a login is a fresh password"
        await age(site)
        answer = await withdraw()
        document = problem(answer, 403, "step_up_required")
        assert document["method"] == "password"
        assert 'error="insufficient_user_authentication"' in answer.headers["www-authenticate"]
        for path in ("/v1/me/totp", "/v1/api-keys"):
            sent = {"name": "k", "scopes": ["market:read"]} if "keys" in path else None
            problem(await ann.post(path, json=sent), 403, "step_up_required")
        wrong = await ann.post("/v1/token/step-up", json={"password": "wrong"})
        problem(wrong, 401, "invalid_credentials")
        problem(await ann.post("/v1/token/step-up", json={}), 403, "step_up_required")
        proven = await ann.post("/v1/token/step-up", json={"password": PASSWORD})
        assert proven.json() == {"method": "password", "expires_in": 300}
        assert (await withdraw()).status_code == 201
        phone, _ = await enrol(site, ann)
        assert (await withdraw()).status_code == 201, "confirming showed the factor"
        await age(site)
        assert problem(await withdraw(), 403, "step_up_required")["method"] == "totp"
        alone = await ann.post("/v1/token/step-up", json={"password": PASSWORD})
        assert problem(alone, 403, "step_up_required")["method"] == "totp"
        code = phone.code()
        proven = await ann.post("/v1/token/step-up", json={"code": code})
        assert proven.json()["method"] == "totp"
        again = await ann.post("/v1/token/step-up", json={"code": code})
        problem(again, 401, "invalid_code")
        assert (await withdraw()).status_code == 201


async def test_a_factor_is_removed_by_who_can_show_it(site: Any, problem: Any) -> None:
    async with site.client("ann") as ann, site.client() as client:
        phone, _ = await enrol(site, ann)
        await age(site)
        problem(await ann.delete("/v1/me/totp"), 403, "step_up_required")
        assert (await ann.post("/v1/token/step-up", json={"code": phone.code()})).status_code == 200
        assert (await ann.delete("/v1/me/totp")).status_code == 204
        assert (await log_in(client)).status_code == 200
        # The password changes without the old one by who has just shown a second factor.
        await site.pool.execute("UPDATE sessions SET factor_at = now(), password_at = NULL")
        answer = await ann.post("/v1/me/password", json={"new_password": "another long password"})
        assert answer.status_code == 200, answer.text


async def test_a_waiting_login_ends_with_the_password(site: Any, problem: Any) -> None:
    async with site.client("ann") as ann, site.client() as client:
        phone, _ = await enrol(site, ann)
        token = (await log_in(client)).json()["mfa_token"]
        body = {"current_password": PASSWORD, "new_password": "another long password"}
        assert (await ann.post("/v1/me/password", json=body)).status_code == 200
        answer = await client.post("/v1/token/mfa", json={"mfa_token": token, "code": phone.code()})
        problem(answer, 401, "invalid_token")


async def test_an_unconfirmed_factor_asks_nothing(site: Any, problem: Any) -> None:
    async with site.client("ann") as ann, site.client() as client:
        problem(
            await ann.post("/v1/me/totp/confirm", json={"code": "000000"}), 409, "factor_not_begun"
        )
        (wrong,) = Phone((await ann.post("/v1/me/totp")).json()["secret"]).wrong(1)
        problem(await ann.post("/v1/me/totp/confirm", json={"code": wrong}), 401, "invalid_code")
        assert (await log_in(client)).status_code == 200
        problem(await ann.post("/v1/me/totp/recovery-codes"), 409, "factor_not_begun")
