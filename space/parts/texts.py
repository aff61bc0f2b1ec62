"""Every word of the page, in English and in Russian."""

from typing import Any

LANGUAGES = ("en", "ru")
LANGUAGE_NAMES = {"en": "English", "ru": "Русский"}

TEXTS: dict[str, tuple[str, str]] = {
    # The page
    "page.lead": (
        "A language model that writes by diffusion: it starts from noise and works out the words of a text together, "
        "step by step.",
        "Эта языковая модель пишет методом диффузии: начинает с шума и шаг за шагом проявляет все слова сразу.",
    ),
    "page.kind.tokens": ("diffusion over tokens", "диффузия по токенам"),
    "page.kind.blocks": (
        "diffusion over tokens, block by block",
        "диффузия по токенам, блок за блоком",
    ),
    "page.kind.embeddings": ("diffusion over word embeddings", "диффузия по эмбеддингам слов"),
    "page.kind.codes": (
        "diffusion over codes: a plan, then the words",
        "диффузия по кодам: сначала план, потом слова",
    ),
    "page.kind.latents": (
        "diffusion over latents, which a language model decodes",
        "диффузия по латентам; слова по ним пишет языковая модель",
    ),
    "page.parameters": ("{count} million parameters", "{count} млн параметров"),
    "page.foot": (
        "This is a small model: expect the style of its training texts, not facts. What you type is kept in memory "
        "only, so that you can replay it.",
        "Модель маленькая: она передаёт стиль текстов, на которых училась, но фактов от неё не ждите. Всё, что вы "
        "вводите, хранится только в памяти и нужно лишь для повтора.",
    ),
    "language": ("Language", "Язык"),
    # The first screen
    "opening.written": (
        "The model wrote this text when the page was started: it began as noise, and each step settled some of its "
        "tokens. The colour of a token is its step, from violet, the first, to yellow, the last.",
        "Этот текст модель написала при запуске страницы: он начинался с шума, и на каждом шаге часть токенов "
        "закреплялась. Цвет токена показывает его шаг: фиолетовый — первый, жёлтый — последний.",
    ),
    "opening.tokens": (
        "A text begins as noise, and at every step some of its tokens settle. Press “Write” to watch it.",
        "Сначала весь текст — шум, и на каждом шаге часть токенов закрепляется. Нажмите «Написать», чтобы это "
        "увидеть.",
    ),
    "opening.codes": (
        "A text begins as codes that are noise, and at every step some of them settle. The words come at the end, all "
        "at once: press “Plan and write” to watch it.",
        "Сначала вместо текста — набор случайных кодов, и на каждом шаге часть из них закрепляется. Слова "
        "появляются в конце, все сразу: нажмите «Составить план и написать», чтобы это увидеть.",
    ),
    "opening.latents": (
        "A text begins as a few vectors of noise, which diffusion cleans step by step. The words come at the end, all "
        "at once: press “Write” to see them.",
        "Сначала вместо текста — несколько случайных векторов, из которых диффузия шаг за шагом убирает шум. Слова "
        "появляются в конце, все сразу: нажмите «Написать», чтобы их увидеть.",
    ),
    "opening.again": ("Play again", "Показать ещё раз"),
    "opening.open": ("Try these settings", "Открыть с этими настройками"),
    "opening.status": (
        "Seed 0 · {steps} steps · {seconds} s on this machine",
        "Зерно 0 · шагов: {steps} · {seconds} с на этой машине",
    ),
    # Programs
    "api.title": ("Use this page from a program", "Как вызвать из программы"),
    "api.lead": (
        "Two functions, /write and /fill, take the settings of the tabs “Write” and “Fill in” by name. Calls wait in "
        "the same queue as visitors, one at a time, and keep to the same limits. Put the address of this page into "
        "`Client`.",
        "Функции /write и /fill принимают те же настройки, что и вкладки «Генерация» и «Пропуски», — по именам. "
        "Вызовы стоят в одной очереди с посетителями, выполняются по одному, и ограничения у них те же. В `Client` "
        "подставьте адрес этой страницы.",
    ),
    # Files
    "save.gif": ("Save as GIF", "Сохранить GIF"),
    "save.png": ("Save as PNG", "Сохранить PNG"),
    "save.json": ("Save as JSON", "Сохранить JSON"),
    "save.step": ("step {step} of {steps}", "шаг {step} из {steps}"),
    # Addresses
    "link": ("Link to these settings", "Ссылка на эти настройки"),
    "address.refused": (
        "The settings in this address cannot be used, and the page shows its own.",
        "Настройки из этого адреса не подходят, поэтому на странице стоят обычные.",
    ),
    "tab.chat": ("Chat", "Чат"),
    "tab.write": ("Write", "Генерация"),
    "tab.fill": ("Fill in", "Пропуски"),
    "tab.control": ("Control", "Управление"),
    "tab.compare": ("Compare", "Сравнение"),
    "tab.corrupt": ("Corrupt", "Зашумление"),
    "tab.laboratory": ("Laboratory", "Лаборатория"),
    "tab.between": ("Between", "Между текстами"),
    # Words of several tabs
    "prompt": ("Beginning of the text", "Начало текста"),
    "prompt.placeholder": (
        "Leave it empty to let the model begin",
        "Оставьте пустым, и модель начнёт сама",
    ),
    "text": ("Text", "Текст"),
    "examples": ("Examples", "Примеры"),
    "examples.chat": ("A question to the model", "Вопрос модели"),
    "examples.write": ("Go on with a beginning", "Продолжить начало"),
    "examples.fill": ("Fill in a gap", "Заполнить пропуск"),
    "examples.corrupt": ("Drown a text in noise", "Зашумить текст"),
    "examples.laboratory": ("Rings out of noise", "Кольца из шума"),
    "label": ("Kind of text", "Вид текста"),
    "label.any": ("any", "любой"),
    "label.unnamed": ("label {label}", "метка {label}"),
    "more": ("More settings", "Другие настройки"),
    "length": ("Length in tokens", "Длина в токенах"),
    "length.info": ("0: the model decides", "0 — решает сама модель"),
    "steps": ("Steps", "Шаги"),
    "steps.info": ("Fewer is faster, more is better", "Меньше — быстрее, больше — лучше"),
    "sampler": ("Sampler", "Сэмплер"),
    "sampler.info": ("The order in which tokens settle", "В каком порядке появляются токены"),
    "window": ("Window", "Окно"),
    "window.info": (
        "Only so many open tokens, from the left, may settle; 0 is all",
        "Из скольких первых незаполненных токенов выбирает шаг; 0 — из всех",
    ),
    "temperature": ("Temperature", "Температура"),
    "temperature.info": ("Low is safe, high is bold", "Ниже — осторожнее, выше — смелее"),
    "count": ("Number of texts", "Сколько текстов"),
    "seed": ("Seed", "Зерно (seed)"),
    "stop": ("Stop", "Стоп"),
    "legend": (
        "The colour of a token is the step at which it settled; the text you gave has none.",
        "Цвет показывает, на каком шаге закрепился токен; у введённого вами текста цвета нет.",
    ),
    "replay": ("Replay: after step", "Повтор: после шага"),
    "needs.tokens": (
        "This tab needs a model that writes tokens. This one writes codes, and its words appear all at once.",
        "Для этой вкладки нужна модель, которая пишет токены. Эта пишет коды, и слова у неё появляются все разом.",
    ),
    "status.done": (
        "{seconds} s · {steps} steps · {calls} model calls",
        "{seconds} с · шагов: {steps} · вызовов модели: {calls}",
    ),
    "status.steps": ("{seconds} s · {steps} steps", "{seconds} с · шагов: {steps}"),
    "status.running": ("step {step}", "шаг {step}"),
    "status.seconds": ("{seconds} s", "{seconds} с"),
    "status.stopped": ("Stopped at step {step}.", "Остановлено на шаге {step}."),
    # Chat
    "chat.lead": (
        "Talk to the model. A reply does not grow word by word: it settles all over, and the light squares are the "
        "tokens that are still open.",
        "Поговорите с моделью. Ответ не растёт слово за словом, а постепенно проявляется целиком; светлые квадраты — "
        "ещё не написанные токены.",
    ),
    "chat.conversation": ("Conversation", "Разговор"),
    "chat.message": ("Your message", "Ваше сообщение"),
    "chat.run": ("Send", "Отправить"),
    "chat.retry": ("Try again", "Ответить иначе"),
    "chat.clear": ("Clear", "Очистить"),
    "chat.system": ("Instruction for the model", "Инструкция для модели"),
    "chat.system.placeholder": (
        "How it should reply, such as: briefly",
        "Как ей отвечать, например: кратко",
    ),
    "chat.length": ("Longest reply in tokens", "Наибольшая длина ответа в токенах"),
    "chat.block": ("Tokens written together", "Сколько токенов писать вместе"),
    "chat.temperature.info": (
        "0: the same reply at every try",
        "0 — всегда один и тот же ответ",
    ),
    "chat.block.info": (
        "From left to right; 0: all at once",
        "Слева направо; 0 — сразу все",
    ),
    # Write
    "write.lead": (
        "Watch a text appear. Each step settles some of its tokens: anywhere in the text, or in the block that it "
        "has come to.",
        "Посмотрите, как появляется текст: на каждом шаге проступают новые токены — в любом его месте или в том "
        "блоке, до которого дошла очередь.",
    ),
    "write.run": ("Write", "Написать"),
    # Plan
    "plan.lead": (
        "The model first writes a plan of a few coarse codes, then the detail, then all the words at once. Keep a "
        "plan to see it put into other words.",
        "Сначала модель намечает план несколькими грубыми кодами, затем уточняет его и в конце пишет все слова "
        "сразу. План можно оставить и получить по нему другие слова.",
    ),
    "plan.run": ("Plan and write", "Составить план и написать"),
    "plan.again": ("Same plan, other words", "Тот же план, другие слова"),
    "plan.coarse": ("Steps for the plan", "Шаги для плана"),
    "plan.fine": ("Steps for the detail", "Шаги для деталей"),
    "plan.cells": ("Plan", "План"),
    "plan.detail": ("Detail", "Детали"),
    "plan.temperature.info": (
        "0: the likeliest word everywhere",
        "0 — везде самое вероятное слово",
    ),
    # Latents
    "latents.lead": (
        "Diffusion writes a few vectors, the latents of a text, and a language model turns them into words, once, at "
        "the end. Another seed is another text, even where each word is the likeliest.",
        "Диффузия пишет несколько векторов — латенты текста, а языковая модель в самом конце превращает их в слова. "
        "Другое зерно — другой текст, даже если каждый раз выбирать самое вероятное слово.",
    ),
    "latents.source": ("Text to write from", "Исходный текст"),
    "latents.scale": ("Strength of what is asked for", "Сила условий"),
    "latents.scale.info": (
        "1: the model as trained; more exaggerates",
        "1 — как при обучении; больше — утрированно",
    ),
    "latents.length": ("Longest text in tokens", "Наибольшая длина текста в токенах"),
    # Between
    "between.lead": (
        "Both texts become latents, and the model writes what lies on the way from one to the other. The ends are the "
        "two texts as it gives them back.",
        "Оба текста превращаются в латенты, и модель пишет то, что лежит на пути от одного к другому. По краям — сами "
        "эти тексты, какими она их восстановила.",
    ),
    "between.first": ("From", "Первый текст"),
    "between.second": ("To", "Второй текст"),
    "between.count": ("Number of texts", "Сколько текстов"),
    "between.run": ("Write what lies between", "Написать тексты между ними"),
    # Fill in
    "fill.lead": (
        "The model reads the text before and after each gap. Write ___ (or [MASK]) for one token and [3] for three. A "
        "common word is one token, a rare word is several.",
        "Модель видит текст и до, и после пропуска. Пишите ___ (или [MASK]) вместо одного токена и [3] вместо трёх. "
        "Частое слово — это один токен, редкое — несколько.",
    ),
    "fill.text": ("Text with gaps", "Текст с пропусками"),
    "fill.run": ("Fill in", "Заполнить"),
    # Control
    "control.lead": (
        "The same noise, guided more and more strongly. Scale 0 ignores what you ask for, 1 is the model as trained, "
        "and more exaggerates.",
        "Шум один и тот же, а управление всё сильнее. При силе 0 условия не учитываются, при 1 модель пишет так, "
        "как обучена, при большей — утрированно.",
    ),
    "control.unlabelled": (
        "This model has no labels, but it can follow a beginning, keep away from another one, and use the words and "
        "the length that you ask for.",
        "У этой модели нет меток, но ей можно задать начало, указать, чего избегать, и назвать нужные слова и длину.",
    ),
    "control.unguided": (
        "This model has no labels, but it can use the words and the length that you ask for.",
        "У этой модели нет меток, но ей можно задать нужные слова и длину.",
    ),
    "control.blocks": (
        "This model predicts one block at a time. It can be guided by its labels, if it has any, and held to an exact "
        "length. Words need a model that sees the whole text, and a beginning to keep away from would move the text "
        "elsewhere.",
        "Эта модель предсказывает по одному блоку. Ей можно задать точную длину и метку, если метки у неё есть. Для "
        "обязательных слов нужна модель, которая видит текст целиком, а начало, которого надо избегать, сдвинуло бы "
        "весь текст.",
    ),
    "control.masked": (
        "This model predicts one block at a time. Give it a beginning, which is compared with masks in its place, or "
        "an exact length; words need a model that sees the whole text.",
        "Эта модель предсказывает по одному блоку. Задайте ей начало — оно сравнивается с масками на том же месте — "
        "или точную длину; для обязательных слов нужна модель, которая видит текст целиком.",
    ),
    "control.one_block": (
        "This model writes block by block. Give it a beginning, which is compared with masks in its place, an exact "
        "length, or words: with words the whole text is a single block.",
        "Эта модель пишет блок за блоком. Задайте ей начало — оно сравнивается с масками на том же месте, — точную "
        "длину или обязательные слова: с ними весь текст становится одним блоком.",
    ),
    "control.negative": ("Keep away from", "Чего избегать"),
    "control.negative.placeholder": (
        "The beginning of a text to differ from",
        "Начало текста, от которого надо уйти",
    ),
    "control.words": ("Words it must use", "Обязательные слова"),
    "control.words.info": (
        "Up to {limit}, separated by commas",
        "Не больше {limit}, через запятую",
    ),
    "control.length": ("Exact length in tokens", "Точная длина в токенах"),
    "control.run": ("Write side by side", "Написать варианты"),
    "control.scale": ("Scale", "Сила"),
    "control.free": ("without", "без условий"),
    "control.held": ("with", "с условиями"),
    # Compare
    "compare.lead": (
        "The same model and seed with different samplers: what they write, and what it costs.",
        "Модель и зерно одни и те же, а сэмплеры разные: что получается и сколько на это уходит времени.",
    ),
    "compare.samplers": ("Samplers", "Сэмплеры"),
    "compare.steps": ("Numbers of steps", "Число шагов"),
    "compare.run": ("Compare", "Сравнить"),
    "compare.plot.seconds": ("seconds", "секунды"),
    "compare.plot.calls": ("{calls} calls", "вызовов: {calls}"),
    "compare.plot.share": ("share of steps done", "доля пройденных шагов"),
    "compare.plot.settled": ("share of tokens settled", "доля готовых токенов"),
    # Corrupt
    "corrupt.lead": (
        "This is what the model learns to undo. Slide from the clean text to pure noise: every kind of noise destroys "
        "the words in its own way.",
        "Вот что модель учится исправлять. Двигайте ползунок от исходного текста к чистому шуму: каждый вид шума "
        "портит слова по-своему.",
    ),
    "corrupt.kernel": ("Kind of noise", "Вид шума"),
    "corrupt.time": ("Time: 0 is clean, 1 is noise", "Время: 0 — исходный текст, 1 — шум"),
    "corrupt.result": ("Corrupted text", "Зашумлённый текст"),
    "corrupt.status": (
        "{changed} of {total} tokens changed. At this time a token is still itself with probability {alpha}%.",
        "Изменено токенов: {changed} из {total}. К этому моменту токен сохраняется с вероятностью {alpha} %.",
    ),
    "kernel.absorbing": ("masks", "маски"),
    "kernel.uniform": ("random words", "случайные слова"),
    "kernel.hybrid": ("masks and words", "маски и слова"),
    "kernel.neighbors": ("related words", "близкие слова"),
    "kernel.bit_flip": ("flipped bits of the token id", "инвертированные биты номера токена"),
    # Laboratory
    "laboratory.lead": (
        "Points in the plane instead of words: in the first picture noise takes a figure apart, in the second a "
        "sampler leads other noise back to it. Nothing is trained here: of such figures the best denoiser is known "
        "exactly, so that what goes wrong is the sampler's doing.",
        "Вместо слов здесь точки на плоскости: на первой картинке шум разрушает фигуру, на второй сэмплер собирает её "
        "из другого шума. Обучать ничего не надо: для таких фигур лучший денойзер известен точно, и если что-то "
        "вышло не так, дело в сэмплере.",
    ),
    "laboratory.figure": ("Figure", "Фигура"),
    "laboratory.steps": ("Steps of the sampler", "Шаги сэмплера"),
    "laboratory.time": ("Noise: time", "Шум: время"),
    "laboratory.way": ("Way back: share", "Путь обратно: доля"),
    "laboratory.noise": (
        "Grey: points of the figure. Green: the same points at this time, when {share}% of their variance is noise.",
        "Серые точки — сама фигура. Зелёные — они же в выбранный момент: {share} % их дисперсии — шум.",
    ),
    "laboratory.ways": (
        "Grey: points of the figure. Green: points after {call} of {calls} calls of the denoiser, some with the way "
        "that they came. {near}% of them are on the figure; of true points it is 99%.",
        "Серые точки — сама фигура. Зелёные — точки после {call} из {calls} вызовов денойзера, у некоторых виден "
        "пройденный путь. На фигуру попало {near} % из них; из её собственных точек — 99 %.",
    ),
    "figure.moons": ("two moons", "два полумесяца"),
    "figure.rings": ("two rings", "два кольца"),
    "figure.eight": ("eight spots", "восемь пятен"),
    # Samplers, by their names in `samplers_for`
    "sampler.own": ("own: as published", "own: как у авторов модели"),
    "sampler.ancestral": ("ancestral: as trained", "ancestral: как при обучении"),
    "sampler.first_hitting": (
        "first hitting: one token per step",
        "first hitting: по токену за шаг",
    ),
    "sampler.confidence": (
        "confidence: surest first",
        "confidence: сначала самые уверенные",
    ),
    "sampler.left_to_right": (
        "left to right: like an autoregressive model",
        "left to right: слева направо, как авторегрессия",
    ),
    "sampler.entropy": (
        "entropy: least doubt first",
        "entropy: сначала где меньше сомнений",
    ),
    "sampler.margin": (
        "margin: clearest lead first",
        "margin: сначала с самым большим отрывом",
    ),
    "sampler.threshold": (
        "threshold: all that are sure",
        "threshold: сразу все уверенные",
    ),
    "sampler.entropy_bound": (
        "entropy bound: as many as is safe",
        "entropy bound: сколько можно без риска",
    ),
    "sampler.remdm": (
        "remasking: erases and rewrites",
        "remasking: стирает и пишет заново",
    ),
    "sampler.predictor_corrector": (
        "predictor-corrector: corrects itself",
        "predictor-corrector: исправляет себя",
    ),
    "sampler.ddim": ("DDIM: no fresh noise", "DDIM: без нового шума"),
    "sampler.ddpm": ("DDPM: fresh noise at each step", "DDPM: новый шум на каждом шаге"),
    "sampler.dpm_solver": ("DPM-Solver++: second order", "DPM-Solver++: второй порядок"),
    "sampler.sde_dpm_solver": ("SDE-DPM-Solver++: with noise", "SDE-DPM-Solver++: с шумом"),
    "sampler.euler": ("Euler: along the flow", "Euler: вдоль потока (flow)"),
    "sampler.heun": ("Heun: the same to second order", "Heun: то же, второй порядок"),
    "sampler.probability_flow": (
        "probability flow: by the score",
        "probability flow: по градиенту log p",
    ),
    "sampler.reverse_sde": (
        "reverse SDE: fresh noise at each step",
        "reverse SDE: новый шум на каждом шаге",
    ),
    "sampler.langevin": ("Langevin: wants many steps", "Langevin: нужно много шагов"),
    # Errors
    "error.range": (
        "“{field}” must be between {low} and {high}.",
        "«{field}»: нужно число от {low} до {high}.",
    ),
    "error.integer": ("“{field}” must be a whole number.", "«{field}»: нужно целое число."),
    "error.text": ("“{field}” must be plain text.", "«{field}»: нужен обычный текст."),
    "error.long": (
        "“{field}” takes at most {limit} characters, and this has {got}.",
        "«{field}»: не больше {limit} знаков, а здесь {got}.",
    ),
    "error.tokens": (
        "“{field}”: this model takes at most {limit} tokens, and these are {got}. Please shorten the text.",
        "«{field}»: модель принимает не больше {limit} токенов, а здесь {got}. Сократите текст.",
    ),
    "error.conversation": (
        "The conversation has become too long: the model takes less than {limit} tokens, and these are {got}. Please "
        "clear it.",
        "Разговор стал слишком длинным: модель принимает меньше {limit} токенов, а здесь {got}. Очистите разговор.",
    ),
    "error.silence": (
        "There is nothing to reply to yet: send a message first.",
        "Отвечать пока не на что: сначала отправьте сообщение.",
    ),
    "error.choice": ("“{field}”: there is no such option.", "«{field}»: такого варианта нет."),
    "error.none": (
        "“{field}”: please choose at least one.",
        "«{field}»: выберите хотя бы один вариант.",
    ),
    "error.mask": (
        "“{field}” must not contain {mask}. For gaps there is the tab “Fill in”.",
        "«{field}»: здесь не может быть {mask}. Для пропусков есть вкладка «Пропуски».",
    ),
    "error.empty": ("“{field}” is empty.", "Поле «{field}» не заполнено."),
    "error.gap": (
        "There is no gap. Write ___ where one token is missing, or [3] where three are.",
        "В тексте нет пропуска. Поставьте ___ на месте одного токена или [3] на месте трёх.",
    ),
    "error.length": (
        "Please set a length above 0: this model cannot tell where a text ends.",
        "Задайте длину больше 0: эта модель не умеет сама заканчивать текст.",
    ),
    "error.wish": (
        "Please ask for something: a kind of text, a beginning, words or a length.",
        "Задайте хотя бы одно условие: вид текста, начало, слова или длину.",
    ),
    "error.words": (
        "“{field}” takes at most {limit} words of up to {characters} characters each.",
        "«{field}»: не больше {limit} слов, в каждом до {characters} знаков.",
    ),
    "error.short": (
        "The length must be more than {got}: the beginning alone has that many tokens.",
        "Длина должна быть больше {got}: столько токенов уже в начале текста.",
    ),
    "error.time": (
        "This took too long and was stopped. Please try fewer steps or a shorter text.",
        "Это заняло слишком много времени и было прервано. Попробуйте меньше шагов или текст покороче.",
    ),
    "error.runs": (
        "At most {limit} at once, and you chose {got}.",
        "Не больше {limit} сразу, а выбрано {got}.",
    ),
    "error.plan": (
        "There is no plan yet: write a text first.",
        "Плана ещё нет: сначала напишите текст.",
    ),
    "error.save": (
        "There is nothing to save yet: let a run come to its end first.",
        "Сохранять пока нечего: сначала дождитесь конца работы.",
    ),
    "error.address.tab": (
        "There is no tab “{name}”.",
        "Вкладки «{name}» нет.",
    ),
    "error.address.field": (
        "This tab has no setting “{name}”.",
        "У этой вкладки нет настройки «{name}».",
    ),
    "error.address.twice": (
        "“{name}” is given twice.",
        "«{name}» задано дважды.",
    ),
    "error.address.long": (
        "An address takes at most {limit} settings.",
        "В адресе может быть не больше {limit} настроек.",
    ),
    "error.model": ("The model cannot do this: {detail}", "Модель так не может: {detail}"),
    "error.unexpected": (
        "Something went wrong on our side. Please try again.",
        "У нас что-то сломалось. Попробуйте ещё раз.",
    ),
}


def decimal(value: float, digits: int, language: str) -> str:
    """A number as it is written in a language: 0.5 in English, 0,5 in Russian."""
    written = f"{value:.{digits}f}"
    return written.replace(".", ",") if language == "ru" else written


def say(key: str, language: str, **values: Any) -> str:
    """The words of a key, in English if the language is not known."""
    place = LANGUAGES.index(language) if language in LANGUAGES else 0
    words = TEXTS[key][place]
    return words.format(**values) if values else words
