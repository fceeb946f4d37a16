"""Anthropic's own client, unchanged: messages whole and streamed, tools, breakpoints, counts,
models and errors. It checks each answer against its types (_strict_response_validation)."""
import asyncio
import unittest

import anthropic
import openai

import service

FORECAST = {"name": "forecast", "description": "Weather of a city.",
            "input_schema": {"type": "object", "properties": {"city": {"type": "string"}},
                             "required": ["city"]}}
SHORT = {"type": "ephemeral"}
LONG = {"type": "ephemeral", "ttl": "1h"}


def client():
    return anthropic.Anthropic(base_url=service.endpoint, api_key="none", max_retries=0,
                               timeout=service.ANSWER_LIMIT_S, _strict_response_validation=True)


def async_client():
    return anthropic.AsyncAnthropic(base_url=service.endpoint, api_key="none", max_retries=0,
                                    timeout=service.ANSWER_LIMIT_S,
                                    _strict_response_validation=True)


def asked(content, **fields):
    return {"model": service.model, "max_tokens": 12, "extra_body": {"temperature": 0},
            "messages": [{"role": "user", "content": content}], **fields}


def text_of(message):
    return "".join(block.text for block in message.content if block.type == "text")


def prompt_tokens(usage):
    return (usage.input_tokens + usage.cache_creation_input_tokens
            + usage.cache_read_input_tokens)


def marked(text, control):
    return {"type": "text", "text": text, "cache_control": control}


class Models(unittest.TestCase):
    def test_list_and_one(self):
        with client() as api:
            models = list(api.models.list(limit=5))
            one = api.models.retrieve(service.model)
            with self.assertRaises(anthropic.NotFoundError):
                api.models.retrieve("another")
        self.assertEqual([model.id for model in models], [service.model])
        self.assertEqual((one.type, one.lifecycle), ("model", "active"))
        self.assertGreater(one.max_input_tokens, 100)


class Messages(unittest.TestCase):
    def test_whole(self):
        with client() as api:
            answer = api.messages.create(**asked("Name a colour."))
            counted = api.messages.count_tokens(
                model=service.model, messages=[{"role": "user", "content": "Name a colour."}])
        self.assertEqual((answer.type, answer.role, answer.model),
                         ("message", "assistant", service.model))
        self.assertTrue(text_of(answer))
        self.assertIn(answer.stop_reason, ("end_turn", "max_tokens"))
        self.assertIsNone(answer.stop_sequence)
        self.assertEqual(prompt_tokens(answer.usage), counted.input_tokens)
        self.assertTrue(1 <= answer.usage.output_tokens <= 12)
        self.assertTrue(answer.id.startswith("msg_"))
        self.assertEqual(answer._request_id, answer.id)

    def test_streamed_is_what_whole_is(self):
        fields = asked(service.prompt())
        with client() as api:
            whole = api.messages.create(**fields)
            kinds = [event.type for event in api.messages.create(**fields, stream=True)]
            with api.messages.stream(**fields) as stream:
                text = "".join(stream.text_stream)
                final = stream.get_final_message()
        self.assertEqual(text, text_of(whole))
        self.assertEqual(text_of(final), text)
        self.assertEqual(final.stop_reason, whole.stop_reason)
        self.assertEqual(final.usage.output_tokens, whole.usage.output_tokens)
        self.assertEqual(prompt_tokens(final.usage), prompt_tokens(whole.usage))
        self.assertEqual(kinds[:2], ["message_start", "content_block_start"])
        self.assertEqual(kinds[-3:], ["content_block_stop", "message_delta", "message_stop"])
        self.assertEqual(set(kinds[2:-3]), {"content_block_delta"})

    def test_coroutines(self):
        fields = asked(service.prompt())

        async def ask():
            async with async_client() as api:
                whole = await api.messages.create(**fields)
                async with api.messages.stream(**fields) as stream:
                    final = await stream.get_final_message()
                both = await asyncio.gather(*[
                    api.messages.create(**asked(f"{number}, and the next number?"))
                    for number in range(4)])
                return whole, final, both
        whole, final, both = asyncio.run(ask())
        self.assertEqual(text_of(final), text_of(whole))
        self.assertEqual(len({answer.id for answer in both}), 4)

    def test_blocks_and_turns(self):
        with client() as api:
            first = api.messages.create(
                model=service.model, max_tokens=8, extra_body={"temperature": 0},
                system=[{"type": "text", "text": "Answer "}, {"type": "text", "text": "briefly."}],
                messages=[{"role": "user", "content": [{"type": "text", "text": "Say "},
                                                       {"type": "text", "text": "hello."}]}])
            second = api.messages.create(**asked("Say hello.", max_tokens=8,
                                                 system="Answer briefly."))
        self.assertEqual(text_of(first), text_of(second))
        self.assertEqual(prompt_tokens(first.usage), prompt_tokens(second.usage))

    def test_how_an_answer_ends(self):
        fields = asked(service.prompt(), max_tokens=20)
        with client() as api:
            text = text_of(api.messages.create(**fields))
            stop = text[len(text) // 2:][:4]
            cut = api.messages.create(**fields, stop_sequences=[stop, "~~~"])
            short = api.messages.create(**asked(service.prompt(), max_tokens=1))
            warm = api.messages.create(**asked(service.prompt(), max_tokens=0))
        self.assertEqual(text_of(cut), text[:text.index(stop)])
        self.assertEqual((cut.stop_reason, cut.stop_sequence), ("stop_sequence", stop))
        self.assertEqual((short.stop_reason, short.usage.output_tokens), ("max_tokens", 1))
        self.assertEqual((warm.content, warm.stop_reason, warm.usage.output_tokens),
                         ([], "max_tokens", 0))

    def test_tools_and_what_they_said(self):
        with client() as api:
            called = {"type": "tool_use", "id": "toolu_1", "name": "forecast",
                      "input": {"city": "Oslo"}}
            answer = api.messages.create(
                model=service.model, max_tokens=8, extra_body={"temperature": 0},
                tools=[FORECAST], tool_choice={"type": "auto"},
                messages=[{"role": "user", "content": "Weather in Oslo?"},
                          {"role": "assistant", "content": [called]},
                          {"role": "user", "content": [
                              {"type": "tool_result", "tool_use_id": "toolu_1",
                               "content": [{"type": "text", "text": "Rain."}]}]}])
        self.assertGreater(prompt_tokens(answer.usage), 100)
        self.assertTrue(answer.content)

    def test_a_call_whole_and_streamed(self):
        messages = []
        for number, city in enumerate(service.CITIES):
            messages += [
                {"role": "user", "content": service.QUESTION.format(city)},
                {"role": "assistant", "content": [
                    {"type": "tool_use", "id": f"toolu_{number}", "name": service.FORECAST,
                     "input": {"city": city}}]},
                {"role": "user", "content": [
                    {"type": "tool_result", "tool_use_id": f"toolu_{number}",
                     "content": service.WEATHER}]}]
        # The result and the next question are two messages of one turn.
        messages.append({"role": "user", "content": service.QUESTION.format(service.ASKED_CITY)})
        fields = {"model": service.model, "max_tokens": 48, "messages": messages,
                  "extra_body": {"temperature": 0},
                  "tools": [{"name": service.FORECAST, "description": service.FORECAST_TEXT,
                             "input_schema": service.FORECAST_TAKES}]}
        with client() as api:
            whole = api.messages.create(**fields)
            with api.messages.stream(**fields) as stream:
                final = stream.get_final_message()
            with self.assertRaises(anthropic.BadRequestError) as caught:
                api.messages.create(**fields, tool_choice={"type": "any"})
        for answer in (whole, final):
            self.assertEqual(answer.stop_reason, "tool_use")
            self.assertEqual([(block.type, block.name, block.input) for block in answer.content],
                             [("tool_use", service.FORECAST, {"city": service.ASKED_CITY})])
        self.assertIn("tool_choice.type", caught.exception.body["error"]["message"])

    def test_an_answer_that_was_begun_goes_on(self):
        fields = asked(service.prompt())
        begun = [*fields["messages"], {"role": "assistant", "content": "It is about (a)"}]
        with client() as api:
            whole = api.messages.create(**fields)
            again = api.messages.create(**{**fields, "messages": begun})
            with self.assertRaisesRegex(anthropic.BadRequestError, "white space"):
                begun[-1]["content"] += " "
                api.messages.create(**{**fields, "messages": begun})
        self.assertTrue(1 <= prompt_tokens(again.usage) - prompt_tokens(whole.usage) <= 12)

    def test_a_client_that_leaves_its_stream(self):
        with client() as api:
            stream = api.messages.create(**asked("Tell me a long story.", max_tokens=400),
                                         stream=True)
            next(iter(stream))
            stream.close()
            self.assertTrue(api.messages.create(**asked("Hello")).content)


class Breakpoints(unittest.TestCase):
    def ask_twice(self, **fields):
        with client() as api:
            usages = [api.messages.create(**fields).usage for _ in range(2)]
            with api.messages.stream(**fields) as stream:
                usages.append(stream.get_final_message().usage)
        self.assertEqual(len({prompt_tokens(usage) for usage in usages}), 1, usages)
        return usages

    def test_a_breakpoint_is_created_then_read(self):
        first, second, third = self.ask_twice(
            **asked("What was it about?", system=[marked(service.prompt(120), SHORT)]))
        self.assertGreaterEqual(first.cache_creation_input_tokens, 5 * service.BLOCK_TOKENS)
        self.assertEqual(first.cache_creation.ephemeral_5m_input_tokens,
                         first.cache_creation_input_tokens)
        for again in (second, third):
            self.assertGreaterEqual(again.cache_read_input_tokens,
                                    first.cache_creation_input_tokens)
            self.assertEqual(again.cache_creation_input_tokens, 0)

    def test_an_hour_before_five_minutes(self):
        first, second, _ = self.ask_twice(**asked(
            [{"type": "text", "text": "Now: "}, marked(service.prompt(60), SHORT)],
            system=[marked(service.prompt(60), LONG)]))
        self.assertGreater(first.cache_creation.ephemeral_1h_input_tokens, 0)
        self.assertGreater(first.cache_creation.ephemeral_5m_input_tokens, 0)
        self.assertEqual(first.cache_creation.ephemeral_1h_input_tokens
                         + first.cache_creation.ephemeral_5m_input_tokens,
                         first.cache_creation_input_tokens)
        self.assertGreater(second.cache_read_input_tokens, 0)

    def test_a_stream_tells_at_its_end_what_it_created(self):
        fields = asked([{"type": "text", "text": service.prompt(120), "cache_control": SHORT}])
        with client() as api, api.messages.stream(**fields) as stream:
            usage = stream.get_final_message().usage
        self.assertGreater(usage.cache_creation_input_tokens, 0)
        self.assertIsNone(usage.cache_creation)

    def test_the_bodys_own(self):
        """It marks the last block, so that the next turn finds the whole conversation."""
        question = service.prompt(120)
        with client() as api:
            first = api.messages.create(**asked(question, cache_control=SHORT))
            second = api.messages.create(
                model=service.model, max_tokens=8, cache_control=SHORT,
                extra_body={"temperature": 0},
                messages=[{"role": "user", "content": question},
                          {"role": "assistant", "content": text_of(first) or "Yes."},
                          {"role": "user", "content": service.prompt(60)}])
        created = first.usage.cache_creation_input_tokens
        self.assertGreater(created, 0)
        self.assertGreaterEqual(second.usage.cache_read_input_tokens, created)
        self.assertGreater(second.usage.cache_creation_input_tokens, 0)

    def test_one_conversation_is_one_prompt_in_every_api(self):
        """What came through OpenAI's door is read through this one: the tokens are the same."""
        system, text = service.prompt(40), service.prompt(120)
        with openai.OpenAI(base_url=service.endpoint + "/v1", api_key="none", max_retries=0,
                           timeout=service.ANSWER_LIMIT_S) as api:
            first = api.chat.completions.create(
                model=service.model, max_tokens=8, temperature=0,
                messages=[{"role": "system", "content": system},
                          {"role": "user", "content": text}])
        with client() as api:
            second = api.messages.create(**asked(
                [{"type": "text", "text": text, "cache_control": SHORT}], max_tokens=8,
                system=system))
        self.assertEqual(prompt_tokens(second.usage), first.usage.prompt_tokens)
        self.assertEqual(text_of(second), first.choices[0].message.content)
        self.assertGreaterEqual(second.usage.cache_read_input_tokens,
                                first.usage.prompt_tokens - 3 * service.BLOCK_TOKENS)

    def test_without_one_nothing_is_read_or_created(self):
        fields = asked(service.prompt(120))
        with client() as api:
            for _ in range(2):
                usage = api.messages.create(**fields).usage
                self.assertEqual((usage.cache_creation_input_tokens,
                                  usage.cache_read_input_tokens), (0, 0))
        self.assertGreater(sum(usage.kvist["cached"].values()), 0)

    def test_wrong_ones(self):
        block = {"type": "text", "text": "x", "cache_control": SHORT}
        with client() as api:
            with self.assertRaisesRegex(anthropic.BadRequestError, "at most 4"):
                api.messages.create(**asked([block] * 5))
            with self.assertRaisesRegex(anthropic.BadRequestError, "the longer ttl comes first"):
                api.messages.create(**asked([block, {**block, "cache_control": LONG}]))


class Errors(unittest.TestCase):
    def test_shapes(self):
        with client() as api:
            with self.assertRaises(anthropic.NotFoundError) as missing:
                api.messages.create(**{**asked("x"), "model": "another"})
            with self.assertRaises(anthropic.BadRequestError) as wrong:
                api.messages.create(**asked("x", thinking={"type": "adaptive"}))
            with self.assertRaises(anthropic.BadRequestError) as image:
                api.messages.create(**asked([{"type": "image", "source": {
                    "type": "url", "url": "http://127.0.0.1/x.png"}}]))
        body = missing.exception.body
        self.assertEqual((body["type"], body["error"]["type"]), ("error", "not_found_error"))
        self.assertEqual(body["request_id"], missing.exception.request_id)
        self.assertEqual(wrong.exception.body["error"]["type"], "invalid_request_error")
        self.assertIn("messages.0.content.0.type", image.exception.body["error"]["message"])
