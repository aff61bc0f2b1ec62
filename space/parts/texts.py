"""Every word of the page, in English and in Russian."""

from typing import Any

LANGUAGES = ("en", "ru")
LANGUAGE_NAMES = {"en": "English", "ru": "Русский"}

TEXTS: dict[str, tuple[str, str]] = {
    # The page
    "page.lead": (
        "A language model that does not write from left to right: it starts from noise and settles all words "
        "together, step by step.",
        "Языковая модель, которая пишет не слева направо: она начинает с шума и шаг за шагом находит все слова сразу.",
    ),
    "page.kind.tokens": ("diffusion over tokens", "диффузия по токенам"),
    "page.kind.blocks": ("diffusion over tokens, block by block", "диффузия по токенам, блок за блоком"),
    "page.kind.embeddings": ("diffusion over word embeddings", "диффузия по векторам слов"),
    "page.kind.codes": (
        "diffusion over codes: a plan, then the words",
        "диффузия по кодам: сначала план, затем слова",
    ),
    "page.parameters": ("{count} million parameters", "{count} млн параметров"),
    "page.foot": (
        "A small model: expect the tone of its training texts rather than facts. What you type is kept in memory "
        "only, for the replay.",
        "Это маленькая модель: ждите от неё интонации обучающих текстов, а не фактов. Введённое хранится только в "
        "памяти, для повтора.",
    ),
    "language": ("Language", "Язык"),
    "tab.write": ("Write", "Писать"),
    "tab.fill": ("Fill in", "Заполнить"),
    "tab.control": ("Control", "Управлять"),
    "tab.compare": ("Compare", "Сравнить"),
    "tab.corrupt": ("Corrupt", "Испортить"),
    # What several tabs have
    "prompt": ("Beginning of the text", "Начало текста"),
    "prompt.placeholder": ("Leave it empty and the model begins by itself", "Оставьте пустым — модель начнёт сама"),
    "examples": ("Try", "Попробуйте"),
    "label": ("What to write", "Что писать"),
    "label.any": ("anything", "что угодно"),
    "label.unnamed": ("label {label}", "метка {label}"),
    "more": ("More settings", "Другие настройки"),
    "length": ("Length, in tokens", "Длина, в токенах"),
    "length.info": ("0: the model decides", "0 — решает модель"),
    "steps": ("Steps", "Шаги"),
    "steps.info": ("Fewer are faster, more are better", "Меньше — быстрее, больше — лучше"),
    "sampler": ("Sampler", "Сэмплер"),
    "sampler.info": ("In which order tokens settle", "В каком порядке определяются токены"),
    "temperature": ("Temperature", "Температура"),
    "temperature.info": ("Low is safe, high is bold", "Ниже — осторожнее, выше — смелее"),
    "count": ("Number of texts", "Сколько текстов"),
    "seed": ("Seed", "Зерно случайности"),
    "stop": ("Stop", "Остановить"),
    "result": ("Text", "Текст"),
    "legend": (
        "The colour of a token is the step that settled it; what was given has none.",
        "Цвет токена — шаг, на котором он определился; у заданного текста цвета нет.",
    ),
    "replay": ("Replay: state after step", "Повтор: состояние после шага"),
    "needs.tokens": (
        "This tab needs a model that writes tokens. This one writes {kind}, and its words appear all at once.",
        "Для этой вкладки нужна модель, которая пишет токены. Эта пишет {kind}, и слова появляются все сразу.",
    ),
    "written.blocks": ("tokens block by block", "токены блок за блоком"),
    "written.codes": ("codes", "коды"),
    "needs.whole": (
        "Guidance needs a model that sees the whole text at once. This one writes {kind}.",
        "Управление возможно, когда модель видит весь текст сразу. Эта пишет {kind}.",
    ),
    "status.done": (
        "{seconds} s · {steps} steps · {calls} calls of the model",
        "{seconds} с · шагов: {steps} · обращений к модели: {calls}",
    ),
    "status.running": ("step {step}", "шаг {step}"),
    "status.stopped": ("Stopped at step {step}.", "Остановлено на шаге {step}."),
    # Write
    "write.lead": (
        "Watch a text appear. Every step settles some tokens anywhere in the text, each one seeing all the others.",
        "Посмотрите, как возникает текст: каждый шаг определяет несколько токенов в любых местах, и все видят друг "
        "друга.",
    ),
    "write.run": ("Write", "Написать"),
    # Plan
    "plan.lead": (
        "The model first writes a plan of a few coarse codes, then their detail, then all words at once. Keep the "
        "plan and let it find other words.",
        "Сначала модель пишет план из немногих грубых кодов, потом подробности, потом все слова сразу. План можно "
        "оставить, а слова — заменить.",
    ),
    "plan.run": ("Plan and write", "Составить план и написать"),
    "plan.again": ("Same plan, other words", "Тот же план, другие слова"),
    "plan.coarse": ("Steps for the plan", "Шаги для плана"),
    "plan.fine": ("Steps for the detail", "Шаги для подробностей"),
    "plan.cells": ("Plan", "План"),
    "plan.detail": ("Detail", "Подробности"),
    "plan.temperature.info": ("0: the likeliest word everywhere", "0 — везде самое вероятное слово"),
    # Fill in
    "fill.lead": (
        "The model reads what stands before and after a gap. Write ___ (or [MASK]) for one token and [3] for three; a "
        "common word is one token, a rare one has several.",
        "Модель читает текст и до, и после пропуска. ___ (или [MASK]) — один токен, [3] — три; частое слово — один "
        "токен, редкое — несколько.",
    ),
    "fill.text": ("Text with gaps", "Текст с пропусками"),
    "fill.run": ("Fill in", "Заполнить"),
    # Control
    "control.lead": (
        "The same noise, led more and more strongly. Scale 0 ignores the wish, 1 is the model as trained, more "
        "exaggerates.",
        "Один и тот же шум, но ведём его всё сильнее. Сила 0 не учитывает пожелание, 1 — модель как обучена, больше — "
        "с нажимом.",
    ),
    "control.unlabelled": (
        "This model knows no labels. What needs no training works: a beginning to stick to, one to keep away from, "
        "words, a length.",
        "У этой модели нет меток. Работает то, чему не надо учить: чего держаться, чего избегать, слова, длина.",
    ),
    "control.negative": ("Keep away from", "Избегать"),
    "control.negative.placeholder": (
        "The beginning of a text to differ from",
        "Начало текста, от которого отличаться",
    ),
    "control.words": ("Words it must hold", "Обязательные слова"),
    "control.words.info": ("Up to {limit}, with commas", "До {limit}, через запятую"),
    "control.length": ("Exact length, in tokens", "Точная длина, в токенах"),
    "control.run": ("Write side by side", "Написать рядом"),
    "control.scale": ("Scale", "Сила"),
    "control.free": ("without", "без условий"),
    "control.held": ("with", "с условиями"),
    "control.text": ("Text", "Текст"),
    # Compare
    "compare.lead": (
        "The same model and seed by different samplers: what they write, and what it costs.",
        "Одна модель и одно зерно, разные сэмплеры: что они пишут и чего это стоит.",
    ),
    "compare.samplers": ("Samplers", "Сэмплеры"),
    "compare.steps": ("Numbers of steps", "Числа шагов"),
    "compare.run": ("Compare", "Сравнить"),
    "compare.plot.seconds": ("seconds", "секунды"),
    "compare.plot.calls": ("{calls} calls", "обращений: {calls}"),
    "compare.plot.share": ("share of the steps done", "доля сделанных шагов"),
    "compare.plot.settled": ("share of the tokens settled", "доля определившихся токенов"),
    # Corrupt
    "corrupt.lead": (
        "What the model learns to undo. Slide from clean text to pure noise; every kernel loses words in its own way.",
        "То, что модель учится обращать. Двигайте от чистого текста к чистому шуму: каждое ядро теряет слова "
        "по-своему.",
    ),
    "corrupt.text": ("Text", "Текст"),
    "corrupt.kernel": ("Kernel", "Ядро"),
    "corrupt.time": ("Time: 0 is clean, 1 is noise", "Время: 0 — чистый текст, 1 — шум"),
    "corrupt.result": ("Corrupted text", "Испорченный текст"),
    "corrupt.status": (
        "{changed} of {total} tokens changed; at this time a token is untouched with probability {alpha} %",
        "Изменено токенов: {changed} из {total}; в этот момент токен не тронут с вероятностью {alpha} %",
    ),
    "kernel.absorbing": ("to [MASK]", "в [MASK]"),
    "kernel.uniform": ("to any word", "в любое слово"),
    "kernel.hybrid": ("to both", "и так, и так"),
    "kernel.neighbors": ("to related words", "в близкие слова"),
    "kernel.bit_flip": ("flipped bits of the number", "переворот битов номера"),
    # Samplers, by their names in `samplers_for`
    "sampler.ancestral": ("ancestral: as trained", "ancestral: как обучена"),
    "sampler.first_hitting": ("first hitting: one token a step", "first hitting: по токену за шаг"),
    "sampler.confidence": ("confidence: surest first", "confidence: сначала уверенные"),
    "sampler.entropy": ("entropy: least doubt first", "entropy: сначала где меньше сомнений"),
    "sampler.margin": ("margin: clearest lead first", "margin: сначала с явным перевесом"),
    "sampler.threshold": ("threshold: all that are sure", "threshold: все уверенные сразу"),
    "sampler.entropy_bound": ("entropy bound: as many as is safe", "entropy bound: сколько безопасно"),
    "sampler.remdm": ("remasking: takes tokens back", "remasking: возвращает токены"),
    "sampler.predictor_corrector": ("predictor-corrector: mends", "predictor-corrector: исправляет"),
    "sampler.ddim": ("DDIM: no fresh noise", "DDIM: без нового шума"),
    "sampler.ddpm": ("DDPM: fresh noise each step", "DDPM: новый шум на каждом шаге"),
    "sampler.dpm_solver": ("DPM-Solver++: second order", "DPM-Solver++: второй порядок"),
    "sampler.sde_dpm_solver": ("SDE-DPM-Solver++: with noise", "SDE-DPM-Solver++: с шумом"),
    # Errors
    "error.range": ("“{field}” must be between {low} and {high}.", "«{field}»: нужно число от {low} до {high}."),
    "error.integer": ("“{field}” must be a whole number.", "«{field}»: нужно целое число."),
    "error.text": ("“{field}” must be plain text.", "«{field}»: нужен обычный текст."),
    "error.long": (
        "“{field}” takes at most {limit} characters; these are {got}.",
        "«{field}»: не больше {limit} знаков, а здесь {got}.",
    ),
    "error.tokens": (
        "“{field}” takes at most {limit} tokens with this model; these are {got}. Please shorten it.",
        "«{field}»: с этой моделью не больше {limit} токенов, а здесь {got}. Сократите, пожалуйста.",
    ),
    "error.choice": ("“{field}”: there is no such choice.", "«{field}»: такого варианта нет."),
    "error.none": ("“{field}”: please choose at least one.", "«{field}»: выберите хотя бы одно."),
    "error.mask": (
        "“{field}” must not hold {mask}; gaps belong into the tab “Fill in”.",
        "В поле «{field}» не может быть {mask}; пропуски — во вкладке «Заполнить».",
    ),
    "error.empty": ("“{field}” is empty.", "Поле «{field}» пусто."),
    "error.gap": (
        "There is no gap: write ___ where a token is missing, or [3] for three.",
        "Нет пропуска: напишите ___ на месте токена или [3] на месте трёх.",
    ),
    "error.length": (
        "Please set a length above 0: this model does not say where a text ends.",
        "Задайте длину больше 0: эта модель не решает, где кончается текст.",
    ),
    "error.wish": (
        "Please say what to hold to: a beginning, words, or a length.",
        "Скажите, чего держаться: начало, слова или длина.",
    ),
    "error.words": (
        "“{field}” takes at most {limit} words of {characters} characters each.",
        "«{field}»: не больше {limit} слов, каждое до {characters} знаков.",
    ),
    "error.short": (
        "The length must be more than the {got} tokens of the beginning.",
        "Длина должна быть больше начала, а в нём токенов: {got}.",
    ),
    "error.time": (
        "This took too long and was stopped. Please ask for fewer steps or a shorter text.",
        "Это заняло слишком много времени и было остановлено. Попросите меньше шагов или текст короче.",
    ),
    "error.runs": (
        "At most {limit} runs at once; these are {got}.",
        "Не больше {limit} запусков сразу, а здесь {got}.",
    ),
    "error.plan": ("There is no plan yet: write a text first.", "Плана ещё нет: сначала напишите текст."),
    "error.model": ("The model cannot do this: {detail}", "Модель не может этого сделать: {detail}"),
    "error.unexpected": (
        "Something went wrong on our side. Please try again.",
        "У нас что-то сломалось. Попробуйте ещё раз.",
    ),
}


def say(key: str, language: str, **values: Any) -> str:
    """The words of a key, in English if the language is not known."""
    place = LANGUAGES.index(language) if language in LANGUAGES else 0
    return TEXTS[key][place].format(**values) if values else TEXTS[key][place]
