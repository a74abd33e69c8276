"""The named studies. Each one tests a common claim. `python 03_ddim_schedules/ablate.py --list` prints them."""

from dataclasses import dataclass

MNIST = "data=mnist-10k size=28 channels=16-32-32"  # 28x28 digits and a U-Net for them


@dataclass(frozen=True)
class NamedStudy:
    question: str
    vary: str  # as on the command line, whose own settings replace these key by key
    measure: str = "frechet"  # what table and plot show
    pretrained: bool = False  # measure the shipped network of chapter 1 unless --model is given


STUDIES = {
    "samplers": NamedStudy(
        "How many steps does each sampler need?",
        "sampler=ddpm,ddpm:variance=large,ddim,ddim:eta=0.5,heun,dpmpp_2m,dpmpp_2s,sde steps=5,10,15,20,30,50 n=96",
        pretrained=True,
    ),
    "respacing": NamedStudy(
        "Does DDPM with fewer than 1000 steps stay noisy, or only when its coefficients are wrong?",
        "sampler=ddpm,ddpm_naive,ddim steps=10,20,50,100,250 n=100 seed=0,1,2",
        pretrained=True,
    ),
    "eta": NamedStudy(
        "Are eta = 0 and eta = 1 alike at 50 steps?",
        "sampler=ddim eta=0,0.5,1 steps=10,20,50,100 n=150",
        pretrained=True,
    ),
    "speed": NamedStudy(
        "Is DDIM at 50 steps as good as DDPM at 1000, in a twentieth of the time?",
        "sampler=ddpm:1000,ddim:50:eta=0,ddim:50:eta=1,dpmpp_2m:20 n=150",
        pretrained=True,
    ),
    "optimizers": NamedStudy(
        "Can SGD train a diffusion model? At which rate does AdamW diverge?",
        "optimizer=adamw,sgd lr=1e-4,2e-3,1e-1 seed=0,1,2",
    ),
    "polish": NamedStudy(
        "Does SGD at 1e-6 improve a network trained with AdamW? (A rate of 0 is the control.)",
        "optimizer=adamw-sgd lr=0,1e-6 seed=0,1,2",
    ),
    "schedules": NamedStudy(
        "On one channel: are the linear and the cosine schedule the same?",
        "schedule=linear,cosine,sigmoid,linear_zero_snr seed=0,1,2",
    ),
    "colour": NamedStudy(
        "In colour: does the linear schedule give whitish pictures?",
        "schedule=linear,cosine prediction=eps,v data=cifar10 seed=0,1,2",
        measure="brightness",
    ),
    "losses": NamedStudy(
        "Is L2 sharper and L1 smoother? On 28x28 digits, because enlarged 8x8 digits have no fine detail to lose.",
        f"loss=l2,l1,huber {MNIST} train_steps=2000 n=300 seed=0,1,2",
        measure="sharpness",
    ),
    "weights": NamedStudy(
        "Do P2 and min-SNR weights make a difference?", "weight=plain,p2,min_snr prediction=eps seed=0,1,2"
    ),
    "ema": NamedStudy(
        "Do averaged weights make a difference, while the learning rate is high (stop=0.25) and after it has fallen?",
        f"ema=yes,no stop=0.25,0.5,1 {MNIST} train_steps=2000 n=300 seed=0,1,2",
    ),
    "clip": NamedStudy("Does clipping x0 make a difference?", "clip=none,static,dynamic prediction=eps,v seed=0,1,2"),
    "predictions": NamedStudy(
        "What should the network predict?", "prediction=eps,x0,v schedule=linear,cosine seed=0,1,2"
    ),
    "width": NamedStudy("Does a wider network improve the samples?", "channels=8-16,16-32,24-48 seed=0,1,2"),
    "depth": NamedStudy("Does a deeper network improve the samples?", "layers=1,2 seed=0,1,2"),
    "dit": NamedStudy(
        "Is a DiT better than a U-Net after equal training time?",
        "network=unet,dit-4-128-6 minutes=2,8 schedule=flow prediction=flow data=mnist-10k size=28 channels=16-32-32 "
        "sampler=heun steps=15 n=300 seed=0,1,2",
    ),
    "flow": NamedStudy(
        "Flow matching against diffusion at equal network evaluations",
        f"schedule=flow:flow,cosine:v,linear:eps steps=2,3,5,10,20,50 {MNIST} train_steps=2000 n=300 seed=0,1,2",
    ),
    "variance": NamedStudy(
        "Is a learned variance better than either fixed one, with few steps and with many?",
        "learned_variance=yes sampler=ddpm:variance=small,ddpm:variance=large,ddpm:variance=learned steps=10,50,250 prediction=eps seed=0,1,2",
    ),
}
